"""Writes what the official code makes of a tiny network; see `benchmarks.parity.reference`."""

import copy
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.parity.deterministic import Case
from benchmarks.parity.reference import EPSILONS, NUM_QUERIES, NUM_STEPS, RANKS, pack
from benchmarks.parity.stream import draw_stream
from benchmarks.parity.tiny_network import NUM_CLASSES, TinyWeights, draw_images, draw_weights, logits_fn
from benchmarks.pytorch import official_attacks, official_square
from benchmarks.pytorch.tiny_network import TinyNetwork
from rap_jax._runtime.integrity import write_atomically

_NUM_CANDIDATES = 300
_NUM_BESIDE, _BESIDE = 5, 3e-6
_NUM_POINTS, _NUM_DIMENSIONS = 24, 40

Arrays = dict[str, np.ndarray]


def write_reference(path: Path) -> None:
    """Runs the official attacks and writes the file, of some 150 kB."""
    torch.set_num_threads(1)  # there is so little to do that threads would wait for each other most of the time
    weights = draw_weights(0)
    network = TinyNetwork(weights).eval()
    cases, firsts = _chosen(weights, network, draw_images(1, _NUM_CANDIDATES))
    images, labels = cases[0].images, cases[0].labels
    pixels = np.round(images * 255).astype(np.uint8)
    arrays = pack("weights", weights) | {"images": pixels, "labels": labels} | _losses(network, firsts[0], labels)
    for number, (case, first) in enumerate(zip(cases, firsts, strict=True)):
        arrays |= {f"{case.norm}/first": first} | _projection(case.norm, number) | _square(case, number)
        for name, trace in _traces(case, first).items():
            arrays |= pack(f"{case.norm}/{name}", trace)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _chosen(weights: TinyWeights, network: nn.Module, pixels: np.ndarray) -> tuple[list[Case], list[np.ndarray]]:
    """For each norm a case and where APGD starts, on 8 images on which rounding has no say.

    Four of them are robust, two broken late, one soon, and one has the shortest way to another class. Examples without
    a gradient to speak of are left out; under L2 the official APGD hardly moves them, and that of rap_jax does.
    """
    images = pixels.astype(np.float32) / np.float32(255)
    labels = official_attacks.logits_of(network, images).argmax(1).astype(np.int32)
    steady = np.abs(official_attacks.image_gradients(network, images, labels)).max((1, 2, 3)) > 1e-4
    cases, firsts, latest = [], [], np.zeros(len(images), int)
    for norm, epsilon in EPSILONS.items():
        case = Case(logits_fn(weights), network, images, labels, norm, epsilon, NUM_CLASSES - 1, NUM_STEPS, NUM_QUERIES)
        first = case.first()
        traces = _traces(case, first)
        steady &= _steady(case, first, traces)
        wrong = traces["apgd-dlr"].wrong
        latest += np.where(wrong.any(0), wrong.argmax(0), NUM_STEPS)
        distance = np.abs(traces["fab-t"].images[0] - images).max((1, 2, 3))
        cases.append(case)
        firsts.append(first)
    late = latest[steady]
    order = np.flatnonzero(steady)[np.argsort(-late, kind="stable")]  # robust ones first, then the hardest to break
    robust, soon = int((late == len(cases) * NUM_STEPS).sum()), int((late > 2).sum())
    nearest = np.where(steady & (distance > 0), distance, np.inf).argmin()
    found = np.append(order[[0, 1, 2, 3, robust, robust + 1, soon - 1]], nearest)
    return [case._replace(images=images[found], labels=labels[found]) for case in cases], [x[found] for x in firsts]


def _steady(case: Case, first: np.ndarray, traces: dict[str, Any]) -> np.ndarray:
    """On which examples rounding has no say, bool [N]: any machine has to find there what is in `traces`.

    There the official attacks go the same way, but for 2e-5, if they are computed in float64, and if they start a few
    millionths beside.
    """
    rng, others = np.random.default_rng(0), []
    with official_attacks.in_float64():
        network, wide = copy.deepcopy(case.network).double(), case.images.astype(np.float64)
        others.append(_traces(case._replace(network=network, images=wide), first.astype(np.float64)))
    for _ in range(_NUM_BESIDE):
        beside = (first + rng.uniform(-_BESIDE, _BESIDE, first.shape)).clip(0, 1).astype(np.float32)
        others.append(_traces(case, beside))
    differences = [np.abs(other[name].images - traces[name].images) for other in others for name in traces]
    return np.max([difference.max((0, 2, 3, 4)) for difference in differences], axis=0) <= 2e-5


def _traces(case: Case, first: np.ndarray) -> dict[str, Any]:
    """Of APGD from `first` and of FAB-T, by name."""
    settings: dict[str, Any] = {"norm": case.norm, "epsilon": case.epsilon, "num_steps": case.num_steps}
    examples = case.images, case.labels, first
    apgd = functools.partial(official_attacks.apgd_path, case.network, examples, **settings)
    nearest = official_attacks.fab_nearest(case.network, case.images, case.labels, ranks=RANKS, **settings)
    found = {"apgd-ce": apgd(loss="ce"), "apgd-dlr": apgd(loss="dlr"), "apgd-t": apgd(loss="", rank=RANKS[0])}
    return found | {"fab-t": nearest}


def _losses(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> Arrays:
    logits = official_attacks.logits_of(network, images)
    targets = np.argsort(logits, axis=1)[:, -2].astype(np.int32)
    arrays: Arrays = {"logits": logits, "targets": targets}
    for name, values in official_attacks.loss_values(logits, labels, targets).items():
        arrays |= pack(f"losses/{name}", values)
    return arrays


def _square(case: Case, seed: int) -> Arrays:
    stream = draw_stream(seed, case.norm, case.images.shape, case.num_queries)
    settings: dict[str, Any] = {"norm": case.norm, "epsilon": case.epsilon, "num_steps": case.num_queries}
    found = official_square.square_search(case.network, case.images, case.labels, stream, **settings)
    return pack(f"{case.norm}/square", found) | pack(f"{case.norm}/stream", stream)


def _projection(norm: str, seed: int) -> Arrays:
    """Points, some on the border, and hyperplanes, some of which cannot be reached."""
    rng = np.random.default_rng(seed)
    shape = _NUM_POINTS, _NUM_DIMENSIONS
    points = rng.uniform(-0.2, 1.2, shape).clip(0, 1).astype(np.float32)
    weights = (rng.normal(size=shape) * (rng.random(shape) > 0.2)).astype(np.float32)
    height = (np.abs(weights).sum(1) * rng.uniform(-0.7, 0.7, _NUM_POINTS)).astype(np.float32)
    bias = ((weights.astype(np.float64) * points).sum(1) - height).astype(np.float32)
    found = official_attacks.project(norm, points, weights, bias)
    named = {"points": points, "weights": weights, "height": height, "found": found}
    return {f"{norm}/projection/{name}": array for name, array in named.items()}
