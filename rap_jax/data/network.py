"""Whether a file can be had from the network, told within seconds."""

import queue
import threading

PROBE_SECONDS = 5.0


def why_unreachable(url: str, *, seconds: float = PROBE_SECONDS) -> str | None:
    """Asks for the header of a file, and never takes longer than told.

    TFDS, once it has started a download, tries again for more than three minutes, so it is asked only after this.

    Args:
      url: http or https address; proxies of the environment are honoured, redirections are followed.
      seconds: limit for the whole answer.

    Returns:
      None if the file is there, otherwise the reason in words.
    """
    answers: queue.Queue[str | None] = queue.Queue()
    # In a thread, since the time-out of requests does not cover the look-up of the host name, which may hang.
    threading.Thread(target=lambda: answers.put(_ask(url, seconds)), daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return f"no answer from {url} within {seconds:g} seconds"


def _ask(url: str, seconds: float) -> str | None:
    import requests  # Slow to import, and needed only where no data has been prepared yet.

    try:
        response = requests.head(url, timeout=seconds, allow_redirects=True)  # as TFDS does
    except (OSError, ValueError) as error:  # requests raises subclasses of these two, and some of them bare.
        return f"{url} cannot be reached ({type(error).__name__})"
    return None if response.status_code == 200 else f"{url} answers with status {response.status_code}, not 200"
