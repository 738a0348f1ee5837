"""The flags of an export, and what they mean for each format."""

import dataclasses
import functools
from pathlib import Path

from absl import flags

from launch import flags as training
from launch.configs import check_numbers, getter
from launch.help import format_help
from launch.settings import define_flag, define_settings, from_flags
from rap_jax.config import FORMATS, SUFFIXES, DataConfig, Int8Config, require
from rap_jax.config.checks import require_seed

# Its own, so that the commands may live in one process.
FLAGS = flags.FlagValues()
# Title of each group of flags -> their names, for --help.
GROUPS: dict[str, list[str]] = {}


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What is written where."""

    checkpoint: Path  # folder of the run
    file_format: str  # one of `FORMATS`
    path: Path
    compact: bool  # without the outputs that cannot affect the logits
    fold: bool  # BatchNorm as part of the convolutions
    int8: Int8Config | None  # how the second, quantised file is made; None for no such file

    @property
    def int8_path(self) -> Path:
        """Of the quantised file: network.int8.onnx beside network.onnx."""
        return self.path.with_name(f"{self.path.stem}.int8{self.path.suffix}")


with training.flag_group("Export", GROUPS, FLAGS):
    define_flag("path", "checkpoint", None, "Folder of a finished run.", FLAGS)
    flags.DEFINE_string("format", None, f"What is written: one of {', '.join(FORMATS)}.", FLAGS)
    define_flag("path", "out", None, "The file. Default: RUN/export/NAME with the suffix of the format.", FLAGS)
    flags.DEFINE_boolean("compact", None, "Without filters and neurons that cannot affect the logits. Default: yes, "
                         "but for safetensors, which has the shapes of the PyTorch network.", FLAGS)  # fmt: skip
    flags.DEFINE_boolean("fold", None, "BatchNorm as part of the convolutions. Default: yes, but for safetensors.",
                         FLAGS)  # fmt: skip
with training.flag_group("8 bits (--int8)", GROUPS, FLAGS):
    flags.DEFINE_boolean("int8", False, "With onnx: also a file with 8-bit weights and activations, whose robustness "
                         "is measured.", FLAGS)  # fmt: skip
    define_settings(Int8Config, values=FLAGS)
with training.flag_group("Data for --int8 (default: that of the run)", GROUPS, FLAGS):
    define_settings(DataConfig, values=FLAGS)


def export_from_flags(values: flags.FlagValues = FLAGS) -> ExportConfig:
    """The export that the flags describe; a ValueError for a value or a combination that cannot work."""
    check_numbers(values)
    get = getter(values)
    require_seed(get("seed"))
    checkpoint, file_format = get("checkpoint"), get("format")
    require(bool(checkpoint), "checkpoint", checkpoint, "the folder of a finished run")
    require(file_format in FORMATS, "format", file_format, f"one of {', '.join(FORMATS)}")
    require(not get("int8") or file_format == "onnx", "int8", get("int8"), "--format=onnx with it")
    folder, suffix = Path(checkpoint).expanduser(), SUFFIXES[file_format]
    path = Path(get("out") or folder / "export" / f"{folder.resolve().name}{suffix}").expanduser()
    require(path.suffix == suffix, "out", str(path), f"a name that ends in {suffix} for {file_format}")
    smaller = file_format != "safetensors"
    int8 = from_flags(Int8Config, get) if get("int8") else None
    choice = lambda name: smaller if get(name) is None else bool(get(name))
    return ExportConfig(folder, file_format, path, choice("compact"), choice("fold"), int8)


_INTRODUCTION = [
    "Writes the network of a finished run to a file that works without this package:",
    f"    python -m launch.export --checkpoint=RUN_FOLDER --format={'|'.join(FORMATS)}",
    "The file says how robust the network is, and under which attack. No file is overwritten.",
]
help_text = functools.partial(format_help, _INTRODUCTION, GROUPS, FLAGS)
