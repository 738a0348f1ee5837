"""The compiled programs of one attack: examples are put into slots, go on some steps, and are judged.

A batch is a row of slots. An example that is broken, or has gone through all steps, makes room for another one in the
same compiled program, so that no work is done on what is decided. The batch is split over the devices; no device waits
for another inside a program (see `rap_jax._runtime.mesh`). A network that places itself on devices of its own is run on
these, on the whole batch, as it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.functions import Captured
from rap_jax._runtime.mesh import map_microbatches, replicated, split_over_data
from rap_jax.attacks.checks import LogitsFn
from rap_jax.attacks.losses import margin
from rap_jax.attacks.norms import is_inside, norm_of
from rap_jax.attacks.stepwise import StepwiseAttack, keys_of, where, with_own_keys

_FEWEST_CHECKS = 10
_MOST_STEPS = 100


class Examples(NamedTuple):
    """What a slot begins with, leaves [N, ...].

    Attributes:
      images: clean, float in [0, 1].
      labels, numbers, starts: int32; of the example in its data set, and which start of the attack this is.
    """

    images: Any
    labels: Any
    numbers: Any
    starts: Any


class Judged(NamedTuple):
    """What a network makes of images, leaves [N].

    Attributes:
      wrong: misclassified.
      margin: of the best wrong logit over the right one.
      size: norm of the perturbation.
      sound: finite logits; inside ball and box.
      lost: an attack has met logits or gradients that are NaN on its way, so that surviving it means nothing.
    """

    wrong: Any
    margin: Any
    size: Any
    sound: Any
    lost: Any


class Programs:
    """Programs on a mesh, each compiled once per batch size.

    Args:
      logits_fn: (captured, images) -> logits, or (captured, images, key) of a randomised network.
      captured: its arrays.
      mesh: the devices.
      randomized: whether it takes a key.
      places_itself: whether the network says which of the devices does what; else each does its share of the batch.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        captured: Captured,
        mesh: Mesh,
        *,
        epsilon: float,
        norm: str,
        randomized: bool,
        places_itself: bool = False,
    ):
        self._logits_fn, self._mesh, self._randomized = logits_fn, mesh, randomized
        self._epsilon, self._norm, self._places_itself = epsilon, norm, places_itself
        # What is split over these devices already stays so.
        stays = lambda array: places_itself and array.sharding.device_set == set(mesh.devices.flat)
        self.captured = [array if stays(array) else jax.device_put(array, replicated(mesh)) for array in captured]
        self._judge = self.compile(self._judge_examples)

    @property
    def num_devices(self) -> int:
        """Of the mesh."""
        return self._mesh.size

    def judge(self, key: jax.Array, batch: tuple[np.ndarray, ...]) -> Judged:
        """Predicts others anew: batch of images, others, perturbed images, [N, ...], and labels, numbers int32 [N]."""
        return jax.device_get(self._judge(self.captured, self._on_all(key), self.split(batch)))

    def of_attack(self, attack: StepwiseAttack, key: jax.Array) -> "AttackPrograms":
        """Those of one attack."""
        return AttackPrograms(self, attack, self._on_all(key))

    def judge_images(self, images: jax.Array, others: jax.Array, labels: jax.Array, logits: jax.Array) -> Judged:
        """What the logits [N, K] of `others` say."""
        size = norm_of(self._norm).size(others - images)
        inside = is_inside(others, images, epsilon=self._epsilon, norm=self._norm)
        sound = jnp.isfinite(logits).all(-1) & inside
        wrong = logits.argmax(-1).astype(labels.dtype) != labels
        return Judged(wrong, margin(logits, labels), size, sound, jnp.zeros_like(wrong))

    def logits(self, captured: Captured, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Of images [N, ...]; a randomised network draws for each by its own key [N]."""
        logits_fn = self.unbound(captured)
        return with_own_keys(logits_fn)(images, keys) if self._randomized else logits_fn(images)

    def unbound(self, captured: Captured) -> LogitsFn:
        """The network with its arrays, without a draw: an attack on a randomised one makes its own."""
        return lambda images, *draw: self._logits_fn(captured, images, *draw)

    def _judge_examples(self, captured: Captured, key: jax.Array, batch: Any) -> Judged:
        images, others, labels, numbers = batch
        return self.judge_images(images, others, labels, self.logits(captured, keys_of(key, numbers), others))

    def compile(self, function: Callable[[Captured, jax.Array, Any], Any]) -> jax.stages.Wrapped:
        """Each device has arrays and key whole, and its share of the batch, which it goes through in parts.

        With a network that places itself, XLA and the network decide that.
        """

        def on_share(captured: Captured, key: jax.Array, batch: Any) -> Any:
            return map_microbatches(lambda part: function(captured, key, part), batch, self._mesh)

        if self._places_itself:
            return jax.jit(on_share)
        whole, share = replicated(self._mesh).spec, split_over_data(self._mesh).spec
        specs = (whole, whole, share)
        return jax.jit(jax.shard_map(on_share, mesh=self._mesh, in_specs=specs, out_specs=share, check_vma=False))

    def split(self, batch: Any) -> Any:
        """Puts a batch on the devices."""
        return batch if self._places_itself else jax.device_put(batch, split_over_data(self._mesh))

    def _on_all(self, key: jax.Array) -> jax.Array:
        return jax.device_put(key, replicated(self._mesh))


class AttackPrograms:
    """Fills slots and lets them go on; made by `Programs.of_attack`.

    Attributes:
      steps: that `advance` does, a divisor of the attack's.
    """

    def __init__(self, programs: Programs, attack: StepwiseAttack, key: jax.Array):
        self._programs, self._attack, self._key = programs, attack, key
        self.steps = steps_between_checks(attack.num_steps)
        self._start = programs.compile(self._start_examples)
        self._advance = programs.compile(self._advance_state)
        self._merge = programs.compile(lambda captured, key, batch: _merge(*batch))

    def fill(self, state: Any, examples: Examples, taken: np.ndarray) -> Any:
        """The state (None at first) with `examples` at their start in the slots that are `taken`, bool [N]."""
        fresh = self._start(self._programs.captured, self._key, self._programs.split(examples))
        if state is None:
            return fresh
        return self._merge([], self._key, (self._programs.split(taken), fresh, state))

    def advance(self, state: Any, numbers: np.ndarray) -> tuple[Any, Judged]:
        """`steps` further, and what the network makes of the adversarial images; wrong where the attack says so too.

        Args:
          numbers: of the examples in the slots, int32 [N].
        """
        batch = (state, self._programs.split(numbers))
        state, judged = self._advance(self._programs.captured, self._key, batch)
        return state, jax.device_get(judged)

    def _start_examples(self, captured: Captured, key: jax.Array, examples: Examples) -> Any:
        keys = jax.vmap(jax.random.fold_in)(keys_of(key, examples.numbers), examples.starts)
        logits_fn = self._programs.unbound(captured)
        return self._attack.start(logits_fn, keys, examples.images, examples.labels, examples.starts)

    def _advance_state(self, captured: Captured, key: jax.Array, batch: Any) -> tuple[Any, Judged]:
        state, numbers = batch
        state = self._attack.advance(self._programs.unbound(captured), state, self.steps)
        logits = self._programs.logits(captured, keys_of(key, numbers), state.adversarial)
        judged = self._programs.judge_images(state.images, state.adversarial, state.labels, logits)
        return state, judged._replace(wrong=judged.wrong & state.broken, lost=judged.lost | ~jnp.asarray(state.sound))


def steps_between_checks(num_steps: int) -> int:
    """The largest divisor of `num_steps` with which an attack is looked at ten times or more, and every 100 steps.

    0 for an attack that is nothing but its start.
    """
    if num_steps == 0:
        return 0
    most = max(1, min(_MOST_STEPS, num_steps // _FEWEST_CHECKS))
    return next(steps for steps in range(most, 0, -1) if num_steps % steps == 0)


def _merge(taken: jax.Array, fresh: Any, state: Any) -> Any:
    return jax.tree.map(lambda new, old: where(taken, new, old), fresh, state)
