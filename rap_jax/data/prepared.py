"""The prepared copy of a data set in `data_dir`: whether it exists, how it is made and read.

TFDS prepares into a folder `incomplete.*` and renames that at the end, so a folder under the final name is complete.
Whether a file can be downloaded is known within seconds (`why_unreachable`).
"""

import contextlib
import hashlib
import io
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rap_jax._runtime.integrity import make_writable, unreadable
from rap_jax.data.builders import ArrayBuilder
from rap_jax.data.dataset import Split, TrainTest, add_to_hash
from rap_jax.data.streamed import CHUNK, StreamedImages

PROBE_SECONDS = 5.0


def why_unreachable(url: str, *, seconds: float = PROBE_SECONDS) -> str | None:
    """Why the header of a file at an http or https address cannot be had, in words, and never later than told.

    TFDS, once it has started a download, tries again for more than three minutes, so it is asked only after this.
    Proxies of the environment are honoured, redirections are followed. None if the file is there.
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


class DownloadError(ValueError):
    """The raw files cannot be had from the network; the message says where to put them by hand."""


def prepared_path(builder_class: type[ArrayBuilder], data_dir: Path) -> Path:
    """Returns the folder that holds the prepared copy, or will."""
    return data_dir / str(builder_class.name) / str(builder_class.VERSION)


def prepare(builder_class: type[ArrayBuilder], data_dir: Path, raw_data_dir: str | None) -> None:
    """Writes the prepared copy from raw files: 25 MB for MNIST in some seconds, 200 MB for CIFAR-10 in a minute.

    Args:
      data_dir: gets the prepared copy and, under `downloads/`, files that are downloaded.
      raw_data_dir: folder with the raw files; None to download them.

    Raises:
      DownloadError: the network or the files in it are not there; found out within seconds.
      ValueError: `data_dir` cannot be written to, or a raw file is missing or damaged.
    """
    try:
        make_writable(data_dir)
    except OSError as error:
        message = f"data_dir {data_dir} cannot be written to ({error}); expected a folder of yours: --data_dir=FOLDER"
        raise ValueError(message) from error
    # Printed and not logged: it takes up to a minute, and the command shows warnings only.
    print(f"Preparing {builder_class.name} in {data_dir}, once.", file=sys.stderr, flush=True)
    builder = builder_class(data_dir=data_dir, raw_data_dir=raw_data_dir)
    if raw_data_dir is None:
        _download_and_prepare(builder)
    else:
        _prepare(builder)


def read_prepared(
    builder_class: type[ArrayBuilder], data_dir: Path, *, streamed: bool = False
) -> tuple[TrainTest, str]:
    """Reads the prepared copy and refuses it unless its content is the official one.

    Args:
      streamed: the training images stay on disk; they are looked through once, part after part.

    Returns:
      The training and the test data, in the order of the official files, with the names of the classes; and the
      `content_hash` of both.

    Raises:
      ValueError: the copy is damaged; the message says what to delete.
    """
    path = prepared_path(builder_class, data_dir)
    remedy = f"delete the folder {path} and run again, so that it is prepared anew"
    try:
        builder = builder_class(data_dir=data_dir)
        found = hashlib.sha256()
        train = _read_split(builder, "train", found, streamed=streamed)
        test = _read_split(builder, "test", found)
        expected = builder.expected_hash
    except Exception as error:  # A damaged copy raises RuntimeError, KeyError, ParseError and more.
        raise unreadable(f"The prepared data in {path}", error, remedy) from error
    digest = found.hexdigest()
    if digest != expected:
        wanted = f"expected SHA-256 {expected or 'stored with it, which is gone'}, got {digest}"
        raise ValueError(f"The prepared data in {path} is damaged: {wanted}; {remedy}.")
    return TrainTest(train, test, builder_class.CLASS_NAMES), digest


def _read_split(builder: ArrayBuilder, name: str, digest: "hashlib._Hash", *, streamed: bool = False) -> Split:
    """One look at every example tells its label and the hash of all."""
    source = builder.as_data_source(split=name)
    images: Any = StreamedImages(source, np.arange(len(source)), builder.SHAPE)
    read, noted = list[np.ndarray](), list[int]()

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, len(source), CHUNK):
            examples = source.__getitems__(list(range(start, min(start + CHUNK, len(source)))))
            noted.extend(int(example["label"]) for example in examples)
            part = np.stack([example["image"] for example in examples])
            if not streamed:
                read.append(part)
            yield part

    add_to_hash(digest, parts(), images.dtype, images.shape)
    labels = np.array(noted, np.int32)
    add_to_hash(digest, (labels,), labels.dtype, labels.shape)
    return Split(images if streamed else np.concatenate(read), labels)


def _download_and_prepare(builder: ArrayBuilder) -> None:
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    problem = why_unreachable(builder.FILES[0].url)
    if problem is not None:
        raise DownloadError(_how_to_provide(builder, problem))
    try:
        _prepare(builder)
    except (requests.RequestException, tfds.download.DownloadError, NonMatchingChecksumError) as error:
        raise DownloadError(_how_to_provide(builder, f"it failed ({error})")) from error


def _prepare(builder: ArrayBuilder) -> None:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        # TFDS prints two lines of "Unknown size"; ours is in the log.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except OSError:
        # Another process may have been first, and the rename then fails; its copy is verified when it is read.
        if not Path(builder.data_path).exists():
            raise


def _how_to_provide(builder: ArrayBuilder, problem: str) -> str:
    folders = ", ".join(sorted({file.url.removesuffix(file.name) for file in builder.FILES}))
    names = ", ".join(file.name for file in builder.FILES)
    state = f"No prepared data in {builder.data_path}, and no download"
    return f"{state}. Get {names} from {folders}, put them into a folder and pass --raw_data_dir=FOLDER. ({problem})"
