"""PGD evaluation against the authors' way in PyTorch: `python -m benchmarks.evaluation`.

    python -m benchmarks.evaluation --only=resnet18_w4      one case; the last line is `ratio 1.20`

The network's weights are random and so are the images; `benchmarks.evaluation_cases` says what is labelled wrong.
PyTorch: every image attacked in every restart. Needs the extra `bench`.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.evaluation_cases import BATCH_SIZE, CASES, Case
from benchmarks.records import Column, Plot, markdown_table, write_records
from benchmarks.rows import LAYOUTS
from benchmarks.turns import in_turn
from benchmarks.worker import Answer, Worker, clocked
from rap_jax._runtime.devices import start_cpu_devices
from rap_jax._runtime.mesh import make_mesh, put_split
from rap_jax.config import ModelConfig
from rap_jax.evaluation.accuracy import Accuracy, make_evaluator
from rap_jax.models import create_model

ABOUT = """\
Images per second of a whole evaluation (natural and worst case over all restarts), rap_jax with its defaults against
every image attacked in every restart in PyTorch, in turn; median of the rounds. The network is random; no attack breaks
an image here, so what is saved is the attacks on images that are wrong to begin with."""
COLUMNS = (
    Column("pytorch_images_per_second", "PyTorch images/s", ",.0f"),
    Column("rap_jax_images_per_second", "rap_jax images/s", ",.0f"),
    Column("ratio", "ratio", ".2f"),
    Column("ratio_best_layout", "in PyTorch's best layout", ".2f"),
)


def make_evaluation(case: Case) -> Callable[[], Accuracy]:
    """A function that evaluates the case once."""
    mesh, shape = make_mesh(), case.of.input_shape
    model = create_model(ModelConfig(case.of.model, case.of.width), input_shape=shape, num_classes=10)
    weights = jax.jit(model.init)(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (case.num_images, *shape), np.uint8)
    logits = jax.jit(lambda images: model.logits(weights, images / 255))
    parts = np.split(images, range(BATCH_SIZE, len(images), BATCH_SIZE))
    answers = np.concatenate([np.asarray(logits(part)).argmax(1) for part in parts])
    split = put_split(images, case.labels(answers.tolist()), mesh)
    evaluate = make_evaluator(model, case.attack, mesh, batch_size=BATCH_SIZE)
    return lambda: evaluate(weights.params, weights.batch_stats, split, jax.random.key(1))


def measure(name: str, *, rounds: int) -> dict[str, Any]:
    """Times one case."""
    case = CASES[name]
    evaluation = make_evaluation(case)
    found = evaluation()
    workers = {layout: Worker("benchmarks.pytorch.evaluation_worker", name, layout) for layout in LAYOUTS}
    ways: dict[str, Callable[[], Answer]] = {"rap_jax": lambda: clocked(evaluation)}
    for layout, worker in workers.items():
        answer = worker.ask("evaluate")
        _same_work(found, answer)
        ways[layout] = lambda worker=worker: worker.ask("evaluate")  # type: ignore[misc]
    times = in_turn(ways, rounds=rounds)
    for worker in workers.values():
        worker.close()
    theirs = min(times[layout].median for layout in case.of.layouts)
    best = min(times[layout].median for layout in workers)
    ours = times["rap_jax"].median
    speeds = {
        "rap_jax_images_per_second": case.num_images / ours,
        "pytorch_images_per_second": case.num_images / theirs,
    }
    return speeds | {"ratio": theirs / ours, "ratio_best_layout": best / ours}


def _same_work(found: Accuracy, answer: Answer) -> None:
    """Both have to lose the same images: two of a thousand may stand on the border between two classes."""
    for ours, theirs in ((found.natural, answer["natural"]), (found.robust, answer["robust"])):
        if abs(ours - theirs) > 0.002:
            raise ValueError(f"Accuracy is {ours} in rap_jax and {theirs} in PyTorch; expected the same.")


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CASES), help="one case")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    start_cpu_devices(0, batch_size=BATCH_SIZE)
    names = [arguments.only] if arguments.only else list(CASES)
    rows = {name: measure(name, rounds=arguments.rounds) for name in names}
    plot = Plot("ratio", "images per second of evaluation, rap_jax over PyTorch", level=1.0)
    write_records("evaluation", rows, about=ABOUT, columns=COLUMNS, order=list(CASES), plot=plot)
    print(markdown_table(rows, COLUMNS))
    print(f"ratio {rows[names[-1]]['ratio']:.2f}")


if __name__ == "__main__":
    main()
