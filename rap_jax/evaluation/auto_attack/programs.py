"""The compiled programs of one attack: examples are put into slots, go on some steps, and are predicted anew.

A batch is a row of slots. An example that is broken, or has gone through all steps, makes room for another one in the
same compiled program, so that no work is done on what is decided. The batch is split over the devices; no device waits
for another inside a program (see `rap_jax._runtime.mesh`). A network that places itself on devices of its own is run on
these, on the whole batch, as it is.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.functions import Captured, exact_products
from rap_jax._runtime.mesh import replicated, split_over_data
from rap_jax.attacks.checks import LogitsFn
from rap_jax.attacks.norms import ThreatModel
from rap_jax.attacks.stepwise import StepwiseAttack, keys_of, where, with_own_keys
from rap_jax.data import padded_batches
from rap_jax.evaluation.correctness import Correctness, Examples, in_microbatches, on_each_device, predict_correct
from rap_jax.models import cpu_forms

_FEWEST_CHECKS = 10
_MOST_STEPS = 100


class Attacked(NamedTuple):
    """What an attack has made of the examples in the slots, leaves [N]."""

    correctness: Correctness  # of the adversarial images, predicted anew
    broken: Any  # whether the attack says that it broke the example and the network misclassifies the image, bool
    valid: Any  # whether no logits and no gradients on the way were NaN, bool; else surviving the attack means nothing


class Programs:
    """Programs on a mesh, each compiled once per batch size.

    `logits_fn` is (captured, images) -> logits, with a key at the end if it is `randomized`. A network that
    `places_itself` says which of the devices does what; else each does its share of the batch. With `fast_on_cpu`
    attacks on a CPU go by `cpu_forms`; what an image is predicted as is always said by the function as it was given.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        captured: Captured,
        mesh: Mesh,
        *,
        threat_model: ThreatModel,
        randomized: bool,
        places_itself: bool = False,
        fast_on_cpu: bool = True,
    ):
        self._logits_fn, self._mesh, self._randomized = logits_fn, mesh, randomized
        self._threat_model, self._places_itself = threat_model, places_itself
        self._fast_on_cpu = fast_on_cpu and not places_itself
        # What is split over these devices already stays so.
        stays = lambda array: places_itself and array.sharding.device_set == set(mesh.devices.flat)
        self.captured = [array if stays(array) else jax.device_put(array, replicated(mesh)) for array in captured]
        self._predict = self.compile(self._predict_batch)

    def replace_captured(self, captured: Captured) -> None:
        """Puts other arrays in the place of those that the function has captured; the programs stay."""
        self.captured = jax.device_put(captured, replicated(self._mesh))

    @property
    def num_devices(self) -> int:
        """Of the mesh."""
        return self._mesh.size

    @property
    def runs_ahead(self) -> bool:
        """Whether a device goes on while the host does something else: a CPU has no time for both."""
        return not _is_on_cpu(self._mesh)

    def predict(
        self,
        key: jax.Array,
        adversarial: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        batch_size: int,
        on_batch: Callable[[], None] = lambda: None,
    ) -> Correctness:
        """Correctness of all `adversarial` images, a batch at a time, as arrays of NumPy.

        A randomised network draws for each example by the key and its number. The devices divide `batch_size`;
        `on_batch` is called after every batch and may raise to stop.
        """
        key, found = jax.device_put(key, replicated(self._mesh)), list[Correctness]()
        for numbers, valid in padded_batches(len(images), batch_size):
            batch = self.split((adversarial[numbers], images[numbers], labels[numbers], numbers))
            answer = jax.device_get(self._predict(self.captured, key, batch))
            found.append(jax.tree.map(operator.itemgetter(valid), answer))
            on_batch()
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)

    def of_attack(self, attack: StepwiseAttack, key: jax.Array) -> "AttackPrograms":
        """Those of one attack."""
        return AttackPrograms(self, attack, jax.device_put(key, replicated(self._mesh)))

    def correctness(
        self,
        captured: Captured,
        key: jax.Array,
        numbers: jax.Array,
        adversarial: jax.Array,
        images: jax.Array,
        labels: jax.Array,
    ) -> Correctness:
        """Inside of a program; a randomised network draws for each example by its number, int32 [N]."""
        logits_fn = exact_products(self.unbound(captured))
        draws = lambda: with_own_keys(logits_fn)(adversarial, keys_of(key, numbers))
        logits = draws() if self._randomized else logits_fn(adversarial)
        return predict_correct(logits, adversarial, images, labels, self._threat_model)

    def unbound(self, captured: Captured) -> LogitsFn:
        """The network with its arrays, without a draw: an attack on a randomised one makes its own."""
        return lambda images, *draw: self._logits_fn(captured, images, *draw)

    def attacked(self, captured: Captured) -> LogitsFn:
        """`unbound`, in the form that an attack goes by."""
        return form_for_attacks(self.unbound(captured), self._mesh, self._fast_on_cpu)

    def _predict_batch(self, captured: Captured, key: jax.Array, batch: Any) -> Correctness:
        adversarial, images, labels, numbers = batch
        return self.correctness(captured, key, numbers, adversarial, images, labels)

    def compile(self, function: Callable[[Captured, jax.Array, Any], Any]) -> jax.stages.Wrapped:
        """`on_each_device`; with a network that places itself, XLA and the network decide that."""
        if self._places_itself:
            return jax.jit(in_microbatches(function, self._mesh))
        return on_each_device(function, self._mesh)

    def split(self, batch: Any) -> Any:
        """Puts a batch on the devices."""
        return batch if self._places_itself else jax.device_put(batch, split_over_data(self._mesh))


class AttackPrograms:
    """Fills slots and lets them go on; made by `Programs.of_attack`."""

    def __init__(self, programs: Programs, attack: StepwiseAttack, key: jax.Array):
        self._programs, self._attack, self._key = programs, attack, key
        # Steps that `advance` does, a divisor of the attack's.
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

    def advance(self, state: Any, numbers: np.ndarray) -> tuple[Any, Attacked]:
        """The state after `steps` further steps, and what the attack has made of the examples of these numbers [N].

        Does not wait for the device.
        """
        return self._advance(self._programs.captured, self._key, (state, self._programs.split(numbers)))

    def _start_examples(self, captured: Captured, key: jax.Array, examples: Examples) -> Any:
        keys = jax.vmap(jax.random.fold_in)(keys_of(key, examples.numbers), examples.starts)
        logits_fn = self._programs.attacked(captured)
        return self._attack.start(logits_fn, keys, examples.images, examples.labels, examples.starts)

    def _advance_state(self, captured: Captured, key: jax.Array, batch: Any) -> tuple[Any, Attacked]:
        state, numbers = batch
        state = self._attack.advance(self._programs.attacked(captured), state, self.steps)
        found = self._programs.correctness(captured, key, numbers, state.adversarial, state.images, state.labels)
        valid = jnp.broadcast_to(state.valid, found.correct.shape)
        return state, Attacked(found, ~found.correct & state.broken, valid)


def form_for_attacks(logits_fn: LogitsFn, mesh: Mesh, fast_on_cpu: bool) -> LogitsFn:
    """The network as attacks on the devices of a mesh see it: on a CPU by `cpu_forms`, if it is wanted."""
    return cpu_forms.fast_on_cpu(logits_fn) if fast_on_cpu and _is_on_cpu(mesh) else logits_fn


def _is_on_cpu(mesh: Mesh) -> bool:
    return bool(mesh.devices.flat[0].platform == "cpu")


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
