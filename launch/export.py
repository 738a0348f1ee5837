"""Writes a network to a file: `python -m launch.export --checkpoint=runs/lenet_mnist_mnist_seed0 --format=onnx`."""

import shlex
import sys
import textwrap
from collections.abc import Iterator

from absl import flags, logging

from launch.evaluate_flags import data_for
from launch.export_flags import FLAGS, ExportConfig, define_flags, export_from_flags, help_text
from launch.flagfiles import expand_flagfiles
from launch.help import main_or_help
from rap_jax.data import Dataset, load_dataset
from rap_jax.export.exported_network import ExportedNetwork, open_exported_network
from rap_jax.export.files import about_network, check_path, write_and_compare
from rap_jax.export.onnx.int8 import about_int8, check_data, write_int8

define_flags()


def main(arguments: list[str]) -> None:
    """Writes what the flags say; ends with a few lines on the file."""
    logging.set_verbosity(logging.WARNING)
    command = shlex.join(["python", "-m", "launch.export", *arguments[1:]])
    try:
        surplus = FLAGS(expand_flagfiles(arguments))[1:]
        if surplus:
            raise ValueError(f"Unexpected argument {surplus[0]!r}; flags are written --name=value.")
        for line in _export(export_from_flags(), command):
            print(textwrap.fill(line, 100, subsequent_indent=" " * 4, break_on_hyphens=False), flush=True)
    except (ValueError, OSError, flags.Error) as error:  # OSError: a full disk, a folder that went away
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run the same command to begin again.")


def _export(config: ExportConfig, command: str) -> Iterator[str]:
    exported = open_exported_network(config.checkpoint, compact=config.compact, fold=config.fold)
    dataset = _data_for_int8(exported, config)
    path, difference = write_and_compare(exported, config.file_format, config.path, command)
    yield from about_network(exported, config.file_format, path, difference)
    if config.int8 is not None and dataset is not None:
        print("Quantising, and measuring the file under attack: a minute or two.", file=sys.stderr, flush=True)
        yield from about_int8(config.int8_path, write_int8(exported, dataset, config.int8, config.int8_path, command))


def _data_for_int8(exported: ExportedNetwork, config: ExportConfig) -> Dataset | None:
    """The data of the second file, if there is to be one; what is wrong with it is said before the first is written."""
    if config.int8 is None:
        return None
    check_path(config.int8_path)
    dataset = load_dataset(data_for(exported.results, FLAGS), seed=config.int8.seed)
    check_data(exported, dataset)
    return dataset


def run() -> None:
    """Entry point of the console script."""
    main_or_help(main, help_text)


if __name__ == "__main__":
    run()
