"""AutoAttack: several attacks in turn, each on what the ones before it have left.

Croce and Hein, 2020, https://arxiv.org/abs/2003.01690. What is broken, and by what, does not depend on the order of the
images, the batch size or the devices, but for rounding: everything random follows from the key, the component, the
number of the example and the start.

Differs from the official implementation: (1) Examples leave an attack as soon as they are broken, and others take their
place; theirs goes on to the end of a batch. (2) Every adversarial image is predicted anew when it is found, and its
norm and range are checked; an image that does not hold is no success. The network multiplies in float32 for that, as
`exact_products` says; the attacks, and all of theirs, multiply as the device does by default. (3) A state on disk can
be gone on with. (4) With fewer classes than a component needs it is left out, with a finding; theirs warns and
fails."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from rap_jax._runtime.functions import fingerprint, hoist_closure, on_any_batch, own_mesh, trace
from rap_jax._runtime.mesh import make_mesh
from rap_jax._runtime.progress import Progress
from rap_jax.attacks.checks import LogitsFn, in_float32
from rap_jax.attacks.losses import check_labels
from rap_jax.attacks.norms import ThreatModel, check_threat_model
from rap_jax.attacks.square import Square
from rap_jax.config.attack import check_radius
from rap_jax.config.checks import require, require_choice
from rap_jax.evaluation.auto_attack.inputs import (
    check_arrays,
    check_devices,
    check_gradients,
    check_key,
    check_network,
    check_outside_jit,
    check_state_path,
    for_this_platform,
    refuse_logits,
)
from rap_jax.evaluation.auto_attack.programs import Programs, form_for_attacks
from rap_jax.evaluation.auto_attack.record import Record, Saved, load, save
from rap_jax.evaluation.auto_attack.result import AutoAttackResult, ComponentResult, component_names
from rap_jax.evaluation.auto_attack.slots import Found, Slots, even_slots, num_slots_of
from rap_jax.evaluation.auto_attack.versions import (
    VERSIONS,
    Component,
    Version,
    check_components,
    components_of,
    num_standard,
    stream_of,
)
from rap_jax.evaluation.diagnostics import (
    Finding,
    check_alone,
    check_left_out,
    check_quick,
    check_square,
    check_strong,
    diagnose,
)

_SECONDS_BETWEEN_SAVES = 30.0


def auto_attack(
    logits_fn: LogitsFn,
    images: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    *,
    threat_model: ThreatModel,
    key: jax.Array,
    version: Version = "standard",
    components: Sequence[Component] | None = None,
    batch_size: int = 0,
    state_path: str | Path | None = None,
    devices: list[jax.Device] | None = None,
    diagnostics: bool = True,
    fast_on_cpu: bool = True,
    on_look: Callable[[], None] = lambda: None,
) -> AutoAttackResult:
    """Attacks images with all components of a version of AutoAttack.

    Args:
      logits_fn: images [N, H, W, C] in [0, 1] -> logits [N, K], a pure function with the network in evaluation mode;
        with `version="rand"` (images, key) -> logits.
      images: float in [0, 1], [N, H, W, C].
      labels: int [N], 0 to K - 1.
      threat_model: norm and radius.
      key: typed PRNG key.
      version: `standard`, `plus` or `rand`, which are AutoAttack; `strong`, which begins with the components of
        `standard` and goes on; or `quick`, which is cheap, and too high where gradients mislead: a finding says so
        where random search breaks what the gradients did not.
      components: other attacks than those of the version, in this order, each with a name of its own, and with this
        threat model. With `rand` they have `num_samples` of 1 or more.
      batch_size: examples that a program attacks at a time, over all devices; 0 chooses. It changes nothing but
        rounding. A network that takes batches of this size only is called with no others. On accelerators the examples
        of two programs are held there, so that no device waits for the host.
      state_path: file in which the progress is kept; a call that was killed goes on from there.
      devices: those to run on; None for all. A network that places itself (sharding constraints, `shard_map`, a mesh
        that is set) runs on the devices of its mesh instead, and its captured arrays stay where they are.
      diagnostics: look for signs that the result cannot be trusted, see `rap_jax.evaluation.diagnostics`; each is also
        logged as a warning. Whether a randomised network mixes its batch is always looked at, and nothing else of it.
      fast_on_cpu: attack the network in the form of `rap_jax.models.cpu_forms.fast_on_cpu` if the devices are those of
        a CPU and it does not place itself. Changes rounding alone; images are judged by the network as it is given.
      on_look: called many times a minute, between two programs; it may raise to stop, the progress is saved then.

    Raises:
      ValueError: arrays or settings that cannot be, a state of another evaluation, logits that are NaN, or an attack
        that left ball or box.
    """
    check_outside_jit(images=images, labels=labels, epsilon=check_threat_model(threat_model).epsilon, key=key)
    images, labels = check_arrays(images, labels)
    check_radius(threat_model.norm, float(threat_model.epsilon), images[0].size)
    check_key(key)
    path = check_state_path(state_path)
    require_choice("version", version, VERSIONS)
    given = None if components is None else check_components(components, threat_model=threat_model, version=version)
    draw = (key,) if version == "rand" else ()
    network = _open_network(logits_fn, images, batch_size, make_mesh(check_devices(devices)), draw, fast_on_cpu)
    logits_fn, num_classes = network.logits_fn, network.num_classes
    labels = np.asarray(check_labels(labels, num_classes=num_classes), np.int32)
    chosen = given or components_of(version, threat_model=threat_model, num_classes=num_classes)
    check_gradients(network.no_gradient, chosen, logits_fn, network.batch)
    programs = network.programs(threat_model)
    with for_this_platform():
        clean = programs.predict(key, images, images, labels, batch_size=network.num_slots)
    refuse_logits(logits_fn, images, ~clean.valid, *draw)
    identity = _identity(images, labels, chosen, threat_model, version, key)
    if path is not None:
        identity["program and weights of the network"] = fingerprint(logits_fn, images.shape[1:], *draw)
    title = "AutoAttack " if given is None else ""
    run = _Ensemble(programs, chosen, images, labels, key, network.num_slots, path, identity, title, on_look)
    findings = check_left_out(version, num_classes) if given is None else []
    if version == "rand":
        findings += check_alone(logits_fn, images)
    elif diagnostics:
        findings += diagnose(network.attacked, images, labels, threat_model=threat_model, key=key).findings
    begin = Saved(Record.begin(images, ~clean.correct, clean.margin), 1, {})
    record, results = run.go_on(load(path, images, identity) if path is not None and path.exists() else begin)
    result = AutoAttackResult(
        version=version,
        threat_model=threat_model,
        components=results,
        broken_by=component_names(record.broken_by, tuple(component.name for component in chosen)),
        adversarial=record.adversarial,
        size=record.size,
        margin=record.margin,
        clean_margin=record.clean_margin,
        num_standard=num_standard(chosen, threat_model=threat_model, num_classes=num_classes),
    )
    return _with_findings(result, findings)


def _with_findings(result: AutoAttackResult, findings: list[Finding]) -> AutoAttackResult:
    """The result with these findings and those that follow from it; each is logged as a warning."""
    num_images = len(result.broken_by)
    robust_after = {component.name: component.robust_accuracy for component in result.components}
    found = [
        *findings,
        *check_square(robust_after, num_images),
        *check_quick(result.version, result.masked_share, num_images),
        *check_strong(result.standard_accuracy, result.robust_accuracy, num_images),
    ]
    for finding in found:
        logging.warning("%s: %s", finding.name, finding.text)
    return dataclasses.replace(result, findings=tuple(found))


class _Network(NamedTuple):
    """A network as it is attacked."""

    # Images [N, H, W, C] -> float32 logits [N, K], for any N; of a randomised network (images, key).
    logits_fn: LogitsFn
    # The key of a randomised network, else nothing.
    draw: tuple[jax.Array, ...]
    num_classes: int
    batch: jax.ShapeDtypeStruct  # shape and dtype of the images that a device has
    no_gradient: str  # why it has no gradient; empty if it has one
    # The devices, those of the network if it places itself, and whether it does.
    mesh: jax.sharding.Mesh
    places_itself: bool
    num_slots: int  # images at a time, over all devices
    fast_on_cpu: bool  # whether an attack on a CPU goes by `cpu_forms`

    @property
    def attacked(self) -> LogitsFn:
        """The function in the form that an attack goes by."""
        return form_for_attacks(self.logits_fn, self.mesh, self.fast_on_cpu)

    def programs(self, threat_model: ThreatModel) -> Programs:
        """Its programs for a threat model."""
        return Programs(
            *hoist_closure(self.logits_fn, self.batch, *self.draw),
            self.mesh,
            threat_model=threat_model,
            randomized=bool(self.draw),
            places_itself=self.places_itself,
            fast_on_cpu=self.fast_on_cpu,
        )


def _open_network(
    logits_fn: LogitsFn,
    images: np.ndarray,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    draw: tuple[jax.Array, ...],
    fast_on_cpu: bool,
) -> _Network:
    """Traces the function of a user; a `ValueError` for what cannot be attacked."""
    check_network(logits_fn)
    num_slots = num_slots_of(batch_size, len(images), mesh)
    batch = jax.ShapeDtypeStruct((num_slots // mesh.size, *images.shape[1:]), np.float32)
    sizes = _sizes(batch_size, num_slots, mesh.size)
    logits_fn, num_classes = on_any_batch(in_float32(logits_fn), batch.shape[1:], sizes, *draw)
    require(num_classes >= 2, "number of logits", num_classes, "2 or more: one logit z becomes [0, z]")
    traced = trace(logits_fn, batch, *draw)
    own = own_mesh(traced.jaxpr)
    if own is not None:
        mesh, num_slots = own, num_slots_of(batch_size, len(images), own)
    fast = fast_on_cpu and own is None
    return _Network(logits_fn, draw, num_classes, batch, traced.no_gradient, mesh, own is not None, num_slots, fast)


@dataclasses.dataclass(frozen=True)
class _Ensemble:
    """One evaluation, from a record to the last component."""

    programs: Programs
    components: tuple[Component, ...]
    images: np.ndarray
    labels: np.ndarray
    key: jax.Array
    num_slots: int
    path: Path | None
    identity: dict[str, Any]
    title: str
    on_look: Callable[[], None]

    def go_on(self, saved: Saved) -> tuple[Record, tuple[ComponentResult, ...]]:
        """Runs what is missing."""
        record, seconds = saved.record, dict(saved.seconds)
        for number, component in enumerate(self.components, start=1):
            if number < saved.component:
                continue
            if number > saved.component:
                record.survived[:] = 0
            self._run_component(number, component, record, seconds)
        return record, self._results(record, seconds)

    def _run_component(self, number: int, component: Component, record: Record, seconds: dict[str, float]) -> None:
        before, began = seconds.get(component.name, 0.0), time.monotonic()
        attack, examples = component.attack, record.robust
        label = f"{self.title}{component.name}"
        num_tasks = len(examples) * attack.num_starts - int(record.survived[examples].sum())
        num_rows = 2 if self.programs.runs_ahead and len(examples) > self.num_slots else 1
        num_slots = even_slots(len(examples), num_tasks, self.num_slots, self.programs.num_devices, num_rows)
        last_save = began

        def store() -> None:
            nonlocal last_save
            last_save = time.monotonic()
            seconds[component.name] = before + last_save - began
            if self.path is not None:
                save(self.path, Saved(record, number, seconds), self.identity)

        with Progress(label, len(examples) * attack.num_starts, unit="attack") as progress:

            def tell(found: Found) -> None:
                record.add(found, number)
                robust = record.robust
                left = len(robust) * attack.num_starts - int(record.survived[robust].sum())
                done = len(examples) * attack.num_starts - left
                progress.update(done, f"robust {len(robust) / len(self.images):.2%}")
                if time.monotonic() - last_save > _SECONDS_BETWEEN_SAVES:
                    store()
                self.on_look()

            slots = Slots(
                self.programs.of_attack(attack, jax.random.fold_in(self.key, stream_of(component.name))),
                self.images,
                self.labels,
                num_rows=num_rows,
                num_slots=num_slots,
                num_steps=attack.num_steps,
                num_starts=attack.num_starts,
            )
            try:
                slots.run(examples, record.survived[examples], tell)
            finally:
                store()

    def _results(self, record: Record, seconds: dict[str, float]) -> tuple[ComponentResult, ...]:
        left, results = int((record.broken_by != 0).sum()), list[ComponentResult]()
        for number, component in enumerate(self.components, start=1):
            broken = int((record.broken_by == number).sum())
            left, attacked = left - broken, left
            share = left / len(self.images)
            spent, random_search = seconds.get(component.name, 0.0), isinstance(component.attack, Square)
            results.append(ComponentResult(component.name, attacked, broken, share, spent, random_search))
        return tuple(results)


def _sizes(batch_size: int, num_slots: int, num_devices: int) -> list[int]:
    """Of batches that a network may want: what it is called with, or all at a time, for any split over devices."""
    on_all = math.ceil(num_slots / jax.device_count()) * jax.device_count()
    sizes = (num_slots // num_devices, num_slots, batch_size, on_all)
    return [size for size in dict.fromkeys(sizes) if size]


def _identity(
    images: np.ndarray,
    labels: np.ndarray,
    components: tuple[Component, ...],
    threat_model: ThreatModel,
    version: str,
    key: jax.Array,
) -> dict[str, Any]:
    """What must be the same for an evaluation to be gone on with."""
    content = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return {
        "version": version,
        "norm": threat_model.norm,
        "epsilon": threat_model.epsilon,
        "parts": ", ".join(component.name for component in components),
        "settings of the parts": hashlib.sha256(repr(components).encode()).hexdigest()[:12],
        "key": jax.random.key_data(key).tolist(),
        "num_images": len(images),
        "images and labels": content,
    }
