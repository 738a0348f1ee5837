"""Trains, prunes and retrains: `python -m launch.main --flagfile=launch/lenet_mnist.flags`.

Called again with the same flags it goes on where it stopped.
"""

import contextlib
import functools
import shlex
import sys
from collections.abc import Iterator
from typing import TextIO

from launch.command import enable_compilation_cache, in_words, parse, start
from launch.configs import compute_from_flags, config_from_flags, folder_of, getter
from launch.flagfiles import serialize_flags
from launch.flags import FLAGS
from launch.help import help_text
from launch.settings import from_flags
from rap_jax.config import OutputConfig, ProcessConfig


def main(arguments: list[str]) -> None:
    """Runs what the flags say; ends with the table of results."""
    last_checkpoint = "Stopped at once. Run the same command to go on from the last checkpoint."
    with in_words("run", stopped=last_checkpoint, mend=". Mend that, and run the same command to go on."):
        with _memory_in_words():
            _run(arguments)


def _run(arguments: list[str]) -> None:
    from launch.seeds import check_seeds, fill_in_seed, train_seeds
    from rap_jax._runtime.devices import start_cpu_devices
    from rap_jax._runtime.mesh import check_batch_size, make_mesh
    from rap_jax._runtime.processes import first_before_others, require_same, start_processes
    from rap_jax._runtime.topology import target_devices
    from rap_jax.config import require
    from rap_jax.data import load_dataset
    from rap_jax.training.forecast import forecast, format_estimate, format_forecast
    from rap_jax.training.pipeline import run as run_pipeline
    from rap_jax.training.provenance import describe_devices
    from rap_jax.training.report import format_table

    parse(FLAGS, arguments)
    require(FLAGS.dry_run or not FLAGS.target, "target", FLAGS.target, "none without --dry_run: nothing can run there")
    command = shlex.join(["python", "-m", "launch.main", *arguments[1:]])
    check_seeds(FLAGS)
    if FLAGS.num_seeds > 1:
        _say(train_seeds(FLAGS, command))
        return
    fill_in_seed(FLAGS)
    devices = target_devices(FLAGS.target) if FLAGS.target else None
    config, compute = config_from_flags(), compute_from_flags()
    get = getter(FLAGS)
    output, processes = from_flags(OutputConfig, get), from_flags(ProcessConfig, get)
    # Several processes are the split: one device of each, so that no two share a process and wait for each other.
    start_cpu_devices(compute.num_cpu_devices or int(processes.several), batch_size=config.batch_size)
    start_processes(processes)
    require_same({"dry_run": FLAGS.dry_run})
    enable_compilation_cache(FLAGS.compilation_cache_dir)
    dataset = first_before_others(lambda: load_dataset(config.data, seed=config.seed, streamed=compute.stream_data))
    out_dir = folder_of(config, dataset.name, FLAGS.out_dir)
    mesh = make_mesh(devices, num_model_shards=compute.num_model_shards)
    check_batch_size(config.batch_size, mesh)
    _say(describe_devices(config, compute, mesh), sys.stderr)
    if FLAGS.dry_run:
        found = forecast(config, dataset, mesh, compute, with_estimate=bool(FLAGS.target))
        _say(format_estimate(found, mesh) if FLAGS.target else format_forecast(found))
        return
    written = serialize_flags(out_dir=out_dir)
    results = run_pipeline(config, dataset, out_dir, output=output, compute=compute, command=command, flags=written)
    _say(format_table(results | {"run_dir": str(out_dir)}))  # it may have been moved


def _say(text: str, stream: TextIO | None = None) -> None:
    """Of several processes the first one speaks."""
    from rap_jax._runtime.processes import is_first

    if is_first():
        print(text, file=stream, flush=True)


@contextlib.contextmanager
def _memory_in_words() -> Iterator[None]:
    """Ends the process with a line where memory is full; of several processes it tells the others to leave as well."""
    import jax

    from rap_jax._runtime.processes import leave_the_others, num_processes

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if num_processes() > 1:
            leave_the_others(error)
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        sys.exit(f"error: out of memory ({reason}). Take a smaller --width or --batch_size; --dry_run says what fits.")


run = functools.partial(start, main, help_text)  # entry point of the console script


if __name__ == "__main__":
    run()
