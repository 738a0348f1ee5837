"""Does an interval loss in training pay? `python -m benchmarks.certified_training --raw_data_dir=FOLDER`.

LeNets on MNIST, trained for 20 epochs by the cross-entropy of clean images mixed with that of interval bounds (Gowal et
al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models", 2018,
https://arxiv.org/abs/1810.12715): radius and share of the bounds rise over the first epochs. A row that is in the
results is not measured again; `--only=TEXT` measures the rows whose name has that text.

Differs from Gowal et al.: (1) no elision of the last layer is needed, since `margin_bounds` bounds the differences of
logits. (2) The first epoch is natural; theirs takes 2,000 steps. (3) The weights are averaged.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rap_jax as rap
from benchmarks.records import RESULTS, Column, write_records
from rap_jax.config import DataConfig, ModelConfig
from rap_jax.data import load_dataset
from rap_jax.data.batches import to_unit
from rap_jax.evaluation.certificates import margin_bounds
from rap_jax.evaluation.selection import selection_components
from rap_jax.models import Model
from rap_jax.models.model import Weights

EPOCHS, BATCH_SIZE, LEARNING_RATE, DECAY = 20, 64, 2e-3, 0.999
NATURAL_EPOCHS, RAMP_EPOCHS = 1, 6
# The last part of the training, in which the learning rate falls to 0.
FALL = 0.3
# A little more than the radius that is judged, as in the robust recipe (0.33 for 0.3).
MARGIN = 1.1
NUM_IMAGES = 1000
ABOUT = f"""\
LeNets from hinges in conv1, {EPOCHS} epochs of batch {BATCH_SIZE}, no attack in training. Loss: (1 - share) x
cross-entropy of the clean images + share x cross-entropy of the interval bounds at {MARGIN} times the radius. Percent
of the first {NUM_IMAGES} validation images: natural; attacked, by APGD-T and Square as `--select_attack=strong` has
them; certified by intervals, and by intervals or CROWN-IBP. Test: all 10,000 test images, for rows that were chosen."""
COLUMNS = (
    Column("parameters", "parameters", ",d"),
    Column("natural", "natural", ".1f"),
    Column("attacked", "attacked", ".1f"),
    Column("interval", "certified, intervals", ".1f"),
    Column("certified", "certified, CROWN-IBP", ".1f"),
    Column("test_natural", "test, natural", ".2f"),
    Column("test_certified", "test, certified", ".2f"),
    Column("minutes", "minutes", ".1f"),
)


class Row(NamedTuple):
    """One training."""

    width: int
    epsilon: float
    share: float  # of the bounds in the loss, at the end
    seed: int

    @property
    def name(self) -> str:
        """In the results."""
        return f"w={self.width}, radius {self.epsilon:g}, share {self.share:g}, seed {self.seed}"


ROWS = [
    Row(width, epsilon, share, seed)
    for width in (2, 4)
    for epsilon in (0.1, 0.3)
    for share in (0.5, 1.0)
    for seed in (0, 1)
]


class _State(NamedTuple):
    params: Any
    average: Any
    optimizer: Any
    step: jax.Array


def train(row: Row, model: Model, images: jax.Array, labels: jax.Array) -> Weights:
    """The averaged weights after all epochs; images float [N, H, W, C], labels int [N]."""
    steps = len(labels) // BATCH_SIZE
    tx = _optimizer(EPOCHS * steps)
    weights = model.init(jax.random.key(row.seed))

    def loss(params: Any, batch: jax.Array, progress: jax.Array) -> jax.Array:
        x, y = images[batch], labels[batch]
        logits_fn = lambda x: model.logits(weights._replace(params=params), x)
        ball = rap.ThreatModel("linf", MARGIN * row.epsilon * progress)
        bounds = margin_bounds(logits_fn, x, y, threat_model=ball, method="interval")
        losses = [optax.softmax_cross_entropy_with_integer_labels(z, y).mean() for z in (logits_fn(x), -bounds)]
        share = row.share * progress
        return (1 - share) * losses[0] + share * losses[1]

    def one_step(state: _State, batch: jax.Array) -> tuple[_State, None]:
        progress = jnp.clip((state.step / steps - NATURAL_EPOCHS) / RAMP_EPOCHS, 0, 1)
        gradients = jax.grad(loss)(state.params, batch, progress)
        updates, optimizer = tx.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(DECAY, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, state.average, params)
        return _State(params, average, optimizer, state.step + 1), None

    @jax.jit
    def one_epoch(state: _State, key: jax.Array) -> _State:
        order = jax.random.permutation(key, len(labels))[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
        return jax.lax.scan(one_step, state, order)[0]

    state = _State(weights.params, weights.params, tx.init(weights.params), jnp.int32(0))
    for epoch in range(EPOCHS):
        state = one_epoch(state, jax.random.fold_in(jax.random.key(row.seed), epoch))
        print(f"{row.name}: epoch {epoch + 1} of {EPOCHS}", flush=True)
    return weights._replace(params=state.average)


def _optimizer(total: int) -> optax.GradientTransformation:
    fall = int(FALL * total)
    schedule = optax.join_schedules(
        [optax.constant_schedule(LEARNING_RATE), optax.cosine_decay_schedule(LEARNING_RATE, fall)], [total - fall]
    )
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))


def judge(row: Row, model: Model, weights: Weights, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Percent natural, attacked and certified."""
    logits_fn = lambda images: model.logits(weights, images)
    ball = rap.ThreatModel("linf", row.epsilon)
    found = rap.auto_attack(
        logits_fn, images, labels, threat_model=ball, key=jax.random.key(0), diagnostics=False,
        components=selection_components(ball, model.num_classes),
    )  # fmt: skip
    proved = dict(_certified(logits_fn, images, labels, ball))
    shares = {"natural": found.clean_accuracy, "attacked": found.robust_accuracy, **proved}
    return {name: 100 * share for name, share in shares.items()}


def _certified(
    logits_fn: Any, images: np.ndarray, labels: np.ndarray, ball: rap.ThreatModel
) -> Iterator[tuple[str, float]]:
    """Shares that are certified: by intervals, then by CROWN-IBP as well."""
    certified = rap.certify(logits_fn, images, labels, threat_model=ball, method="interval", batch_size=100).certified
    yield "interval", certified.mean()
    left = np.flatnonzero(~certified)
    more = rap.certify(logits_fn, images[left], labels[left], threat_model=ball, method="crown_ibp").certified
    yield "certified", (certified.sum() + more.sum()) / len(labels)


def measure(row: Row, raw_data_dir: str | None, *, test: bool) -> dict[str, float]:
    """Trains and judges; with `test` the test set as well."""
    dataset = load_dataset(DataConfig("mnist", raw_data_dir=raw_data_dir), seed=row.seed)
    unit = lambda split: np.asarray(to_unit(jnp.asarray(split.images)))
    config = ModelConfig("lenet_mnist", row.width, initializer="hinge")
    model = rap.create_model(config, input_shape=(28, 28, 1), num_classes=10)
    began = time.monotonic()
    weights = train(row, model, jnp.asarray(unit(dataset.train)), jnp.asarray(dataset.train.labels))
    minutes = (time.monotonic() - began) / 60
    images, labels = unit(dataset.validation)[:NUM_IMAGES], dataset.validation.labels[:NUM_IMAGES]
    found = judge(row, model, weights, images, labels)
    found |= {"minutes": minutes, "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights.params))}
    if test:
        logits_fn, ball = lambda images: model.logits(weights, images), rap.ThreatModel("linf", row.epsilon)
        images, labels = unit(dataset.test), dataset.test.labels
        proved = dict(_certified(logits_fn, images, labels, ball))
        right = np.asarray(jax.jit(logits_fn)(images)).argmax(-1) == labels
        found |= {"test_natural": 100 * right.mean(), "test_certified": 100 * proved["certified"]}
    return {name: round(float(value), 3) if name != "parameters" else value for name, value in found.items()}


def main() -> None:
    """Measures the rows that are missing, and writes each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw_data_dir")
    parser.add_argument("--only", default="", help="rows whose name has this text")
    parser.add_argument("--test", action="store_true", help="the test set as well: for rows that validation chose")
    arguments = parser.parse_args()
    for row in ROWS:
        path = RESULTS / "certified_training.json"
        done = json.loads(path.read_text())["rows"] if path.exists() else {}
        wanted = "test_natural" if arguments.test else "natural"
        if arguments.only in row.name and wanted not in done.get(row.name, {}):
            found = measure(row, arguments.raw_data_dir, test=arguments.test)
            names = [one.name for one in ROWS]
            write_records("certified_training", {row.name: found}, about=ABOUT, columns=COLUMNS, order=names)
    print(Path(RESULTS / "certified_training.md").read_text())


if __name__ == "__main__":
    main()
