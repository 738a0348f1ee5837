"""Flagfiles: recipes found by name, nested on common bases, and a run written as one."""

from pathlib import Path

from absl import flags

from launch.flags import GROUPS

FLAGS = flags.FLAGS
_HERE = Path(__file__).parent
_NAMES = ("--flagfile", "-flagfile")


def recipes() -> list[str]:
    """The names of the recipes in this package; bases that recipes share are none themselves."""
    return sorted(path.stem for path in _HERE.glob("*.flags") if not path.stem.startswith("base_"))


def expand_flagfiles(arguments: list[str]) -> list[str]:
    """Puts the lines of each flagfile in its place, so that what comes after it wins.

    `--flagfile=lenet_mnist` (or `launch/lenet_mnist.flags`) names a recipe of this package from any folder, on the
    command line and inside a flagfile. A file that is not there is left for absl to report.

    Raises:
      ValueError: a flagfile contains itself.
    """
    arguments = list(arguments)
    for number in range(len(arguments) - 2, 0, -1):  # `--flagfile NAME` is `--flagfile=NAME`
        if arguments[number] in _NAMES:
            arguments[number : number + 2] = [f"--flagfile={arguments[number + 1]}"]
    return arguments[:1] + [line for argument in arguments[1:] for line in _expand(argument, ())]


def _expand(argument: str, above: tuple[Path, ...]) -> list[str]:
    name, _, value = argument.partition("=")
    path = _find(value) if name in _NAMES and value else None
    if path is None:
        return [argument]
    if path in above:
        raise ValueError(f"The flagfile {path} contains itself: {' -> '.join(str(p) for p in (*above, path))}.")
    lines = (line.strip() for line in path.read_text().splitlines())
    given = [line for line in lines if line and not line.startswith(("#", "//"))]
    return [expanded for line in given for expanded in _expand(line, (*above, path))]


def _find(value: str) -> Path | None:
    """The file that a flag names; None if there is none."""
    path = Path(value).expanduser()
    if path.is_file():
        return path.resolve()
    # Only a bare name, or the path that the README shows: any other path means the file that it names, and no other.
    is_name = path.parent in (Path("."), Path("launch"))
    return next((p for p in (_HERE / path.name, _HERE / f"{path.name}.flags") if is_name and p.is_file()), None)


def serialize_flags(values: flags.FlagValues = FLAGS) -> str:
    """All flags of a run, one per line: a flagfile that gives the same run."""
    own = (values[name] for names in GROUPS.values() for name in names)
    return "".join(f"{flag.serialize()}\n" for flag in own if flag.value is not None)
