"""Writes a network to a file: `python -m launch.export --checkpoint=runs/lenet_mnist_mnist_seed0 --format=onnx`."""

import functools
import shlex
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from launch.command import in_words, parse, start
from launch.evaluate_flags import data_for
from launch.export_flags import FLAGS, ExportConfig, export_from_flags, help_text

if TYPE_CHECKING:
    from rap_jax.data import Dataset
    from rap_jax.export.exported_network import ExportedNetwork


def main(arguments: list[str]) -> None:
    """Writes what the flags say; ends with a few lines on the file."""
    with in_words("export", stopped="Stopped. Run the same command to begin again."):
        parse(FLAGS, arguments)
        command = shlex.join(["python", "-m", "launch.export", *arguments[1:]])
        for line in _export(export_from_flags(), command):
            print(textwrap.fill(line, 100, subsequent_indent=" " * 4, break_on_hyphens=False), flush=True)


def _export(config: ExportConfig, command: str) -> Iterator[str]:
    from rap_jax.export.exported_network import open_exported_network
    from rap_jax.export.files import about_network, write_and_compare
    from rap_jax.export.onnx.int8 import about_int8, write_int8

    exported = open_exported_network(config.checkpoint, compact=config.compact, fold=config.fold)
    dataset = _data_for_int8(exported, config)
    path, difference = write_and_compare(exported, config.file_format, config.path, command)
    yield from about_network(exported, config.file_format, path, difference)
    if config.int8 is not None and dataset is not None:
        print("Quantising, and measuring the file under attack: a minute or two.", file=sys.stderr, flush=True)
        yield from about_int8(config.int8_path, write_int8(exported, dataset, config.int8, config.int8_path, command))


def _data_for_int8(exported: "ExportedNetwork", config: ExportConfig) -> "Dataset | None":
    """The data of the second file, if there is to be one; what is wrong with it is said before the first is written."""
    from rap_jax.data import load_dataset
    from rap_jax.export.files import check_path
    from rap_jax.export.onnx.int8 import check_data

    if config.int8 is None:
        return None
    check_path(config.int8_path)
    dataset = load_dataset(data_for(exported.results, FLAGS), seed=config.int8.seed)
    check_data(exported, dataset)
    return dataset


run = functools.partial(start, main, help_text)  # entry point of the console script


if __name__ == "__main__":
    run()
