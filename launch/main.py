"""Trains, prunes and retrains: `python -m launch.main --flagfile=launch/lenet_mnist.flags`.

Called again with the same flags it goes on where it stopped.
"""

import shlex
import sys
from pathlib import Path
from typing import TextIO

import jax
from absl import app, flags, logging

from launch.compilation import enable_compilation_cache
from launch.configs import compute_from_flags, config_from_flags, output_from_flags, processes_from_flags
from launch.flagfiles import expand_flagfiles, serialize_flags
from launch.flags import define_flags
from launch.help import HELP, help_text
from rap_jax._runtime.devices import start_cpu_devices
from rap_jax._runtime.interrupt import Interrupted
from rap_jax._runtime.mesh import check_batch_size, make_mesh
from rap_jax._runtime.processes import (
    first_before_others,
    is_first,
    leave_the_others,
    num_processes,
    require_same,
    start_processes,
)
from rap_jax.config import RunConfig
from rap_jax.data import Dataset, load_dataset
from rap_jax.data.image_folder import require_outside
from rap_jax.training.forecast import forecast, format_forecast
from rap_jax.training.pipeline import run as run_pipeline
from rap_jax.training.provenance import describe_devices
from rap_jax.training.report import format_table

FLAGS = flags.FLAGS
define_flags()


def main(arguments: list[str]) -> None:
    """Runs what the flags say; ends with the table of results."""
    logging.set_verbosity(logging.WARNING)
    try:
        if len(arguments) > 1:
            raise ValueError(f"Unexpected argument {arguments[1]!r}; flags are written --name=value.")
        config = config_from_flags()
        compute, output = compute_from_flags(), output_from_flags()
        processes = processes_from_flags()
        # Several processes are the split: one device of each, so that no two share a process and wait for each other.
        num_devices = compute.num_cpu_devices or int(processes.several)
        start_cpu_devices(num_devices, batch_size=config.batch_size)
        start_processes(processes)
        require_same({"dry_run": FLAGS.dry_run})
        enable_compilation_cache(FLAGS.compilation_cache_dir)
        dataset = first_before_others(lambda: load_dataset(config.data, seed=config.seed, streamed=compute.stream_data))
        out_dir = _out_dir(config, dataset)
        if config.data.dataset.startswith("folder:"):
            require_outside(config.data.dataset.removeprefix("folder:"), out_dir)
        command = shlex.join(["python", "-m", "launch.main", *sys.argv[1:]])
        mesh = make_mesh(num_model_shards=compute.num_model_shards)
        check_batch_size(config.batch_size, mesh)
        _say(describe_devices(config, compute, mesh), sys.stderr)
        if FLAGS.dry_run:
            _say(format_forecast(forecast(config, dataset, mesh, compute)))
            return
        results = run_pipeline(
            config,
            dataset,
            out_dir,
            output=output,
            compute=compute,
            command=command,
            flags=serialize_flags(out_dir=out_dir),
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a full disk, a folder that went away
        sys.exit(f"error: {error}. Mend that, and run the same command to go on.")
    except jax.errors.JaxRuntimeError as error:
        if num_processes() > 1:
            leave_the_others(error)
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        sys.exit(f"error: out of memory ({reason}). Take a smaller --width or --batch_size; --dry_run says what fits.")
    except KeyboardInterrupt:  # before the run listens for signals, or a second time
        sys.exit("\nStopped at once. Run the same command to go on from the last checkpoint.")
    except Interrupted as stopped:
        print(f"\nThe run was {stopped}. Run the same command to go on.", file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    _say(format_table(results | {"run_dir": str(out_dir)}))  # it may have been moved


def _say(text: str, stream: TextIO | None = None) -> None:
    """Of several processes the first one speaks."""
    if is_first():
        print(text, file=stream, flush=True)


def _out_dir(config: RunConfig, dataset: Dataset) -> Path:
    default = Path("runs") / f"{config.name}_{dataset.name}_seed{config.seed}"
    return Path(FLAGS.out_dir).expanduser() if FLAGS.out_dir else default


def run() -> None:
    """Entry point of the console script."""
    if any(argument in HELP for argument in sys.argv[1:]):
        print(help_text(), end="")
        return
    try:
        arguments = expand_flagfiles(sys.argv)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    app.run(main, argv=arguments)


if __name__ == "__main__":
    run()
