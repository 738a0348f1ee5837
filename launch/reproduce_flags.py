"""The flags of a reproduction, and the plan that they mean."""

import dataclasses
import functools
import shlex
from pathlib import Path

from absl import flags

from launch.flags import flag_group
from launch.help import format_help
from launch.settings import Get, define_flag
from rap_jax.config import STAGES, require
from rap_jax.reproduction.job import Job, in_order
from rap_jax.reproduction.paper import WIDTHS
from rap_jax.reproduction.recipes import SCALES, Scale, scale_of
from rap_jax.reproduction.tables import TABLES, Table, build_table

# Its own, so that several commands can live in one process.
FLAGS = flags.FlagValues()
# Title of each group of flags -> their names, for --help.
GROUPS: dict[str, list[str]] = {}
_OF_THE_PLAN = ("name", "seed", "num_seeds", "width", "sparsity", "start_run", "start_weights", "out_dir", "dry_run")
_LENGTHS = tuple(f"{stage}_epochs" for stage in STAGES)


@dataclasses.dataclass(frozen=True)
class JobPlan:
    """The tables that were asked for, and the jobs that fill them."""

    tables: tuple[Table, ...]
    jobs: tuple[Job, ...]  # with all that they need, in an order in which they can run
    out: Path  # folder of the plan
    scale: Scale


with flag_group("What", GROUPS, FLAGS):
    flags.DEFINE_list("table", None, f"Tables, figures and questions, with commas between: {', '.join(TABLES)}; or "
                      "all.", FLAGS)  # fmt: skip
    flags.DEFINE_enum("scale", "quick", tuple(SCALES), "smoke: seconds a run, for tests; quick: for a night on a CPU "
                      "of two cores; paper: the paper's settings.", FLAGS)  # fmt: skip
    flags.DEFINE_integer("num_seeds", 0, "Seeds of every cell; 0 for that of the scale.", flag_values=FLAGS)
    flags.DEFINE_integer("max_width", 0, "Widest network; 0 for that of the scale.", flag_values=FLAGS)
    flags.DEFINE_string("mnist_flags", "", "More flags for the training runs on MNIST, such as "
                        "'--raw_data_dir=FOLDER'.", FLAGS)  # fmt: skip
    flags.DEFINE_string("cifar10_flags", "", "Likewise on CIFAR-10.", FLAGS)
with flag_group("How", GROUPS, FLAGS):
    define_flag("path", "out", None, "Folder of all runs and of the report. Default: reproduced/SCALE.", FLAGS)
    flags.DEFINE_integer("num_at_once", 1, "Jobs side by side, each on one CPU device if more than 1.",
                         flag_values=FLAGS)  # fmt: skip
    flags.DEFINE_string("seeds_at_once", "auto", "Seeds of a training run in one process, at most: a number, or auto, "
                        "by network and device. On a CPU auto is 1. --list and --dry_run show each job alone.",
                        FLAGS)  # fmt: skip
    flags.DEFINE_bool("dry_run", False, "Print the jobs with their epochs and images, and the time that jobs of the "
                      "same settings took, and run nothing.", FLAGS)  # fmt: skip
    flags.DEFINE_bool("list", False, "Print one command for each job that is not done, and run nothing.", FLAGS)
    flags.DEFINE_integer("level", -1, "With --list: only jobs of this level; those of level 0 need no other job, those "
                         "of level 1 need jobs of level 0, and so on. -1 for all.", flag_values=FLAGS)  # fmt: skip
    flags.DEFINE_bool("collect", False, "Write the report from what is there, and run nothing.", FLAGS)
    flags.DEFINE_bool("pictures", True, "Draw figures and write report.html with them; else report.md alone.", FLAGS)


def plan_from_flags(values: flags.FlagValues = FLAGS) -> JobPlan:
    """The plan that the flags describe; a ValueError for a value or a combination that cannot work."""
    get: Get = lambda name: values[name].value
    require(bool(get("table")), "table", get("table"), f"one or more of {', '.join(TABLES)}, or all")
    for name, least in (("num_seeds", 0), ("max_width", 0), ("num_at_once", 1), ("level", -1)):
        require(get(name) >= least, name, get(name), f"a number from {least}")
    at_once = get("seeds_at_once")
    known = at_once == "auto" or (at_once.isdecimal() and int(at_once) >= 1)
    require(known, "seeds_at_once", at_once, "auto, or a number from 1")
    require(get("max_width") in (0, *WIDTHS), "max_width", get("max_width"), f"one of {', '.join(map(str, WIDTHS))}")
    require(get("level") == -1 or get("list"), "level", get("level"), "--list with it")
    modes = [name for name in ("dry_run", "list", "collect") if get(name)]
    require(len(modes) <= 1, "mode", modes, "one of --dry_run, --list and --collect, or none")
    scale = scale_of(
        get("scale"),
        num_seeds=get("num_seeds"),
        max_width=get("max_width"),
        mnist_flags=_split("mnist_flags", get("mnist_flags")),
        cifar10_flags=_split("cifar10_flags", get("cifar10_flags")),
    )
    names = TABLES if get("table") == ["all"] else tuple(dict.fromkeys(get("table")))
    tables = tuple(build_table(name, scale) for name in names)
    empty = [table.name for table in tables if not table.cells]
    wider = f"a larger --max_width: scale {scale.name} runs no network of it"
    require(not empty or get("table") == ["all"], "table", ",".join(empty), wider)
    tables = tuple(table for table in tables if table.cells)
    jobs = tuple(in_order(job for table in tables for job in table.jobs))
    out = Path(get("out") or Path("reproduced") / scale.name).expanduser()
    require(not out.exists() or out.is_dir(), "out", str(out), "a folder, or a name that is not taken")
    return JobPlan(tables, jobs, out, scale)


def _split(name: str, given: str) -> tuple[str, ...]:
    try:
        found = tuple(shlex.split(given))
    except ValueError as error:
        raise ValueError(f"--{name} is {given!r} ({error}); expected flags as in a shell.") from error
    names = {flag.lstrip("-").partition("=")[0] for flag in found}
    require(not names & set(_LENGTHS), name, given, "no lengths of stages: cells of equal epochs are compared")
    own = ", ".join(f"--{flag}" for flag in _OF_THE_PLAN)
    require(not names & set(_OF_THE_PLAN), name, given, f"none of {own}, which the plan itself gives to its runs")
    return found


_INTRODUCTION = [
    "Runs what a table or figure of the paper needs, and writes a report with our numbers beside the paper's:",
    "    python -m launch.reproduce --table=2 [--FLAG=VALUE ...]",
    "Networks that several cells need are trained once. The same command again goes on where it stopped; what is "
    "done is not done again. Started on several machines with one shared folder, they share the work.",
]
help_text = functools.partial(format_help, _INTRODUCTION, GROUPS, FLAGS)
