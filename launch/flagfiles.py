"""Flagfiles: recipes found by name, nested on common bases, and a run written as one."""

from collections.abc import Callable
from pathlib import Path

from absl import flags

from launch.flags import GROUPS, PROCESSES

FLAGS = flags.FLAGS
_HERE = Path(__file__).parent
_NAMES = ("--flagfile", "-flagfile")
Choose = Callable[[list[str]], list[str]]


def all_lines(lines: list[str]) -> list[str]:
    """Every line of a flagfile counts."""
    return lines


def recipes() -> list[str]:
    """The names of the recipes in this package; bases that recipes share are none themselves."""
    return sorted(path.stem for path in _HERE.glob("*.flags") if not path.stem.startswith("base_"))


def expand_flagfiles(arguments: list[str], choose: Choose = all_lines) -> list[str]:
    """Puts the lines of each flagfile in its place, so that what comes after it wins.

    `--flagfile=lenet_mnist` (or `launch/lenet_mnist.flags`) names a recipe of this package from any folder, on the
    command line and inside a flagfile; there a file beside it comes first. `choose` says which lines of a file count.

    Raises:
      ValueError: there is no such file or recipe, or a flagfile contains itself.
    """
    arguments = list(arguments)
    for number in range(len(arguments) - 2, 0, -1):  # `--flagfile NAME` is `--flagfile=NAME`
        if arguments[number] in _NAMES and not arguments[number + 1].startswith("-"):
            arguments[number : number + 2] = [f"--flagfile={arguments[number + 1]}"]
    return arguments[:1] + [line for argument in arguments[1:] for line in _expand(argument, (), choose)]


def _expand(argument: str, above: tuple[Path, ...], choose: Choose) -> list[str]:
    name, _, value = argument.partition("=")
    if name not in _NAMES:
        return [argument]
    path = _find(value, above[-1].parent if above else Path())
    if path in above:
        raise ValueError(f"The flagfile {path} contains itself: {' -> '.join(str(p) for p in (*above, path))}.")
    lines = (line.strip() for line in path.read_text().splitlines())
    given = choose([line for line in lines if line and not line.startswith(("#", "//"))])
    return [expanded for line in given for expanded in _expand(line, (*above, path), choose)]


def _find(value: str, beside: Path) -> Path:
    """The file that a flag names; relative paths count from the file that the flag stands in, then from here."""
    path = Path(value).expanduser()
    candidates = [beside / path, path]
    # Only a bare name, or the path that the README shows: any other path means the file that it names, and no other.
    if path.parent in (Path("."), Path("launch")):
        candidates += [_HERE / path.name, _HERE / f"{path.name}.flags"]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise ValueError(f"--flagfile is {value!r}; expected a file of flags, or a recipe: {', '.join(recipes())}.")
    return found.resolve()


def serialize_flags(values: flags.FlagValues = FLAGS) -> str:
    """The flags of a run, one per line: a flagfile that gives the same run, by one process or by several."""
    own = (values[name] for title, names in GROUPS.items() if title != PROCESSES for name in names)
    return "".join(f"{flag.serialize()}\n" for flag in own if flag.value is not None)
