"""`--help`: the flags by group, with their defaults, the three stages once."""

import shutil
import textwrap
from collections.abc import Iterator

from absl import flags

from launch.flagfiles import recipes
from launch.flags import GROUPS
from rap_jax.config import STAGES

FLAGS = flags.FLAGS


def help_text(width: int | None = None) -> str:
    """All that a user needs to start a run, wrapped to the terminal, or to `width` columns."""
    parts = [
        "Trains a robust network, prunes it with ADMM, retrains it:",
        "    python -m launch.main --flagfile=RECIPE [--FLAG=VALUE ...]",
        "Flags after the recipe win. The same command again goes on where it stopped.",
        f"Recipes: {', '.join(recipes())}",
    ]
    return format_help(parts, GROUPS, FLAGS, width)


def format_help(
    introduction: list[str], groups: dict[str, list[str]], values: flags.FlagValues, width: int | None = None
) -> str:
    """The help of a command: a few paragraphs, then its flags by group."""
    width = width or min(100, shutil.get_terminal_size().columns)
    lines = [line for part in introduction for line in textwrap.wrap(part, width, subsequent_indent="    ")]
    for title, names in groups.items():
        if title in (f"Stage {stage}" for stage in STAGES[1:]):
            continue
        shared = title == f"Stage {STAGES[0]}"
        heading = f"Stages (STAGE is {', '.join(STAGES)})" if shared else title
        lines += ["", heading, *(line for name in names for line in _flag_lines(values[name], width, shared))]
    return "\n".join(lines) + "\n"


def _flag_lines(flag: flags.Flag, width: int, shared: bool) -> Iterator[str]:
    name, stage = flag.name, STAGES[0]
    choices = getattr(flag.parser, "enum_values", None)
    text = str(flag.help).removeprefix(f"<{'|'.join(choices or [])}>: ")
    if shared:
        name, text = name.replace(stage, "STAGE", 1), text.replace(f" {stage}", " the stage")
    text += f" One of: {', '.join(choices)}." if choices else ""
    default = "" if flag.default in (None, "", (), []) else f" (default {str(flag.default_as_str).strip(chr(39))})"
    yield f"  --{'[no]' if flag.boolean else ''}{name}{default}"
    yield from textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
