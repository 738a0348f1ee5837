"""What all commands have in common: help, flagfiles, and a last line in words for whatever ends them.

A command imports what it works with inside `main`, so that `--help` waits for no JAX.
"""

import contextlib
import faulthandler
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags, logging

from launch.flagfiles import Choose, expand_flagfiles

HELP = ("--help", "-help", "-h", "--h", "-?", "--helpshort", "-helpshort", "--helpfull", "-helpfull")


def start(main: Callable[[list[str]], None], help_text: Callable[[], str]) -> None:
    """What a command does with the arguments of the process."""
    if any(argument in HELP for argument in sys.argv[1:]):
        print(help_text(), end="")
        return
    faulthandler.enable()
    main(sys.argv)


def parse(values: flags.FlagValues, arguments: list[str], choose: Choose = list) -> None:
    """Parses the arguments of a command that takes flags alone.

    Raises:
      ValueError, flags.Error: a flagfile or a flag cannot be read, or an argument is no flag.
    """
    surplus = values(expand_flagfiles(arguments, choose))[1:]
    if surplus:
        raise ValueError(f"Unexpected argument {surplus[0]!r}; flags are written --name=value.")
    if "progress" in values:
        from rap_jax._runtime.progress import show_as

        show_as(values.progress)


@contextlib.contextmanager
def in_words(
    noun: str, *, stopped: str = "Stopped at once. Run the same command to go on.", mend: str = ""
) -> Iterator[None]:
    """Ends the process with a line on what went wrong, or on how to go on.

    Args:
      noun: what the command does: run, evaluation, plan.
      stopped: said after Ctrl-C, before the command listens for signals or a second time.
      mend: said after an error of the file system, such as a full disk.
    """
    from rap_jax._runtime.interrupt import Interrupted

    logging.set_verbosity(logging.WARNING)
    try:
        yield
    except (ValueError, flags.Error) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}{mend}")
    except KeyboardInterrupt:
        sys.exit(f"\n{stopped}")
    except Interrupted as interrupted:
        print(f"\nThe {noun} was {interrupted}. Run the same command to go on.", file=sys.stderr)
        sys.exit(128 + interrupted.signal_number)


def enable_compilation_cache(folder: str) -> None:
    """Keeps what takes more than half a second to compile in `folder` for later starts; nothing for an empty one."""
    import jax

    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
