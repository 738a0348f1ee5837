"""The official Square attack with its random numbers given."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from pyautoattack.square import SquareAttack
from torch import nn

from benchmarks.parity.stream import Stream
from benchmarks.parity.traces import Search
from benchmarks.pytorch.official_attacks import NORMS, to_labels, to_numpy, to_torch


@functools.cache
def _seed_of(above_half: bool, dtype: torch.dtype) -> int:
    """A seed of PyTorch after which the first uniform number is above 0.5, or is not."""
    first = lambda seed: torch.rand([1], generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return next(seed for seed in range(1000) if bool(first(seed) > 0.5) is above_half)


class StreamedSquare(SquareAttack):
    """Takes every random number from a stream, in the order in which the attack asks for them."""

    def __init__(self, network: nn.Module, stream: Stream, norm: str, **settings: object):
        super().__init__(network, norm=NORMS[norm], resc_schedule=False, device="cpu", **settings)
        l2 = norm == "l2"
        places = [stream.corners, stream.other_corners] if l2 else [stream.corners]
        self._places = iter(np.concatenate(places, axis=1).ravel())
        self._turns = iter([*stream.first_transposed.ravel(), *stream.transposed])
        self._signs: Iterator[np.ndarray] = iter([*_first_signs(stream, l2), *stream.signs[:, :, None, None]])

    def random_int(self, low: int = 0, high: int = 1, shape: Sequence[int] = (1,)) -> torch.Tensor:
        """The next place; see the official code."""
        place = torch.full(tuple(shape), float(next(self._places)), dtype=torch.float32)
        return (low + (high - low) * place).long()

    def random_choice(self, shape: Sequence[int]) -> torch.Tensor:
        """The next signs, the same for all examples where the stream has them so."""
        return torch.tensor(next(self._signs), dtype=torch.get_default_dtype()).expand(*shape).clone()

    def eta(self, side: int) -> torch.Tensor:
        """The pattern, transposed as the stream says: the official code draws that from PyTorch, which is seeded so."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed_of(bool(next(self._turns)), torch.get_default_dtype()))
            return super().eta(side)


def _first_signs(stream: Stream, l2: bool) -> list[np.ndarray]:
    """In one go for all stripes [N, C, 1, W], or for each tile by itself [N, C, 1, 1]."""
    if not l2:
        return [stream.first_signs.transpose(0, 3, 1, 2)]
    num_images, rows, columns, channels = stream.first_signs.shape
    tiles = stream.first_signs.reshape(num_images, rows * columns, channels)
    return [tiles[:, tile, :, None, None] for tile in range(rows * columns)]


def square_search(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    stream: Stream,
    *,
    norm: str,
    epsilon: float,
    num_steps: int,
) -> Search:
    """Square on images of edges for which both sides have the same tiles (10 or 28 pixels, but not 8)."""
    x, y = to_torch(images), to_labels(labels)
    attack = StreamedSquare(network, stream, norm, eps=epsilon, n_queries=num_steps)
    attack.init_hyperparam(x)
    with torch.no_grad():
        num_queries, best = attack.attack_single_run(x, y)
        broken = network(best).argmax(1) != y
    return Search(to_numpy(best), num_queries.numpy().astype(np.int64), broken.numpy())
