"""Attacks a finished network: `python -m launch.evaluate --checkpoint=runs/lenet_mnist_mnist_seed0`.

Called again with the same flags it goes on where it stopped.
"""

import functools
import shlex
from pathlib import Path

from launch.command import enable_compilation_cache, in_words, parse, start
from launch.configs import compute_from_flags
from launch.evaluate_flags import FLAGS, check_same_data, data_for, evaluation_from_flags, help_text, without_training
from launch.parsers import expand_path
from rap_jax.config import require

# Enough for every core to be a device.
_IMAGES_PER_CORE = 64


def main(arguments: list[str]) -> None:
    """Evaluates what the flags say; ends with the table of results."""
    with in_words("evaluation"):
        _evaluate(arguments)


def _evaluate(arguments: list[str]) -> None:
    from rap_jax._runtime.devices import start_cpu_devices, usable_cores
    from rap_jax.data import load_dataset
    from rap_jax.evaluation.network import open_network
    from rap_jax.evaluation.report import format_robustness
    from rap_jax.evaluation.robustness import evaluate_robustness

    parse(FLAGS, arguments, without_training)
    require(bool(FLAGS.checkpoint), "checkpoint", FLAGS.checkpoint, "what is to be evaluated, such as a run's folder")
    compute = compute_from_flags(FLAGS)
    start_cpu_devices(compute.num_cpu_devices, batch_size=_IMAGES_PER_CORE * usable_cores())
    enable_compilation_cache(FLAGS.compilation_cache_dir)
    network = open_network(FLAGS.checkpoint, implementation=compute.implementation)
    config = evaluation_from_flags(network.run)
    require(all(FLAGS.transfer_from), "transfer_from", FLAGS.transfer_from, "names without an empty one among them")
    sources = [open_network(expand_path(name), implementation=compute.implementation) for name in FLAGS.transfer_from]
    dataset = load_dataset(data_for(network.run), seed=config.seed)
    check_same_data(network.run, dataset)
    default = Path(FLAGS.checkpoint) / "evaluation" if network.run else Path("evaluations") / network.name
    results = evaluate_robustness(
        network,
        dataset,
        config,
        Path(FLAGS.out_dir or default).expanduser(),
        sources=sources,
        batch_size=FLAGS.attack_batch_size,
        command=shlex.join(["python", "-m", "launch.evaluate", *arguments[1:]]),
    )
    print(format_robustness(results))


run = functools.partial(start, main, help_text)  # entry point of the console script


if __name__ == "__main__":
    run()
