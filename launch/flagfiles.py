"""Flagfiles: recipes found by name, nested on common bases, and a run written as one."""

from collections.abc import Callable
from pathlib import Path

from absl import flags

from launch.flag_lines import as_line, read_lines
from launch.flags import GROUPS, PROCESSES
from launch.parsers import expand_path

FLAGS = flags.FLAGS
_HERE = Path(__file__).parent
_NAMES = ("--flagfile", "-flagfile")
_OF_A_RUN = "run.flags"
Choose = Callable[[list[str]], list[str]]  # lines of a flagfile -> those that count


def recipes() -> list[str]:
    """The names of the recipes in this package; bases that recipes share are none themselves."""
    return sorted(path.stem for path in _HERE.glob("*.flags") if not path.stem.startswith("base_"))


def expand_flagfiles(arguments: list[str], choose: Choose = list) -> list[str]:
    """Puts the lines of each flagfile in its place, so that what comes after it wins.

    `--flagfile=lenet_mnist` (or `launch/lenet_mnist.flags`) names a recipe of this package from any folder, on the
    command line and inside a flagfile; there a file beside it comes first. `choose` says which lines of a file count.
    The run.flags of a run's folder means that folder, also after the folder was moved.

    Raises:
      ValueError: there is no such file or recipe, a line of it is no flag, or a flagfile contains itself.
    """
    arguments = list(arguments)
    for number in range(len(arguments) - 2, 0, -1):  # `--flagfile NAME` is `--flagfile=NAME`
        if arguments[number] in _NAMES and not arguments[number + 1].startswith("-"):
            arguments[number : number + 2] = [f"--flagfile={arguments[number + 1]}"]
    return arguments[:1] + [line for argument in arguments[1:] for line in _expand(argument, (), choose)]


def _expand(argument: str, above: tuple[Path, ...], choose: Choose, place: str = "--flagfile") -> list[str]:
    name, _, value = argument.partition("=")
    if name not in _NAMES:
        return [argument]
    path = _find(value, above[-1].parent if above else Path(), place)
    if path in above:
        raise ValueError(f"The flagfile {path} contains itself: {' -> '.join(str(p) for p in (*above, path))}.")
    lines = read_lines(path)
    places = {line.argument: f"{line.place}: --flagfile" for line in lines}
    given = choose(_in_its_folder(path, [line.argument for line in lines]))
    return [each for line in given for each in _expand(line, (*above, path), choose, places.get(line, place))]


def _in_its_folder(path: Path, lines: list[str]) -> list[str]:
    """The lines of a run.flags in the folder of a run, whatever folder they name: else a second run would begin."""
    if path.name != _OF_A_RUN or not (path.parent / "config.json").is_file():
        return lines
    others = [line for line in lines if line.lstrip("-").partition("=")[0] != "out_dir"]
    return [*others, f"--out_dir={path.parent}"]


def _find(value: str, beside: Path, place: str) -> Path:
    """The file that a flag names; relative paths count from the file that the flag stands in, then from here."""
    path = Path(expand_path(value)).expanduser()
    candidates = [beside / path, path]
    # Only a bare name, or the path that the README shows: any other path means the file that it names, and no other.
    if path.parent in (Path("."), Path("launch")):
        candidates += [_HERE / path.name, _HERE / f"{path.name}.flags"]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        folder = f" {path} is a folder." if value and path.is_dir() else ""
        raise ValueError(
            f"{place} is {value!r}; expected a file of flags, or a recipe: {', '.join(recipes())}.{folder}"
        )
    return found.resolve()


def serialize_flags(values: flags.FlagValues = FLAGS, out_dir: Path | None = None) -> str:
    """The flags of a run, one per line: a flagfile that gives the same run, by one process or by several.

    Args:
      values: the flags; their paths depend on no current folder.
      out_dir: folder of the run where the flags name none.

    Raises:
      ValueError: a value has a line break, which no flagfile can hold.
    """
    own = (values[name] for title, names in GROUPS.items() if title != PROCESSES for name in names)
    lines = [as_line(flag.serialize()) for flag in own if flag.value is not None]
    default = [] if values["out_dir"].value or out_dir is None else [as_line(f"--out_dir={out_dir.absolute()}")]
    return "".join(f"{line}\n" for line in [*lines, *default])
