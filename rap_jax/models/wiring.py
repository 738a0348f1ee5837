"""The wiring of a network, for compaction: which layers share channels, and which layers read them.

    wiring = Wiring(reads=(("conv2", "conv1"), ("fc1", "conv2")))
    wiring.groups                                   {"conv1": "conv1", "conv2": "conv2"}

In a residual network channels add up: what several layers write, and others read, is one group of channels, which all
of these layers have to keep or lose together. `groups` finds them: layers that are read by the same reader.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple


class Wiring(NamedTuple):
    """The layers whose outputs can be removed, and their readers.

    Each output of a producer passes a ReLU and, at most, pooling, a mean, flattening to [height, width, channel] and
    sums with outputs of the same number of other producers of the group, on its way to the readers that are named
    here, and reaches no other. A BatchNorm that stands alone lies behind the sum and before the ReLU.
    """

    reads: tuple[tuple[str, str], ...] = ()  # (reader, producer), paths of layers; a reader of a sum has several
    norms: tuple[str, ...] = ()  # paths of the BatchNorms that stand alone, each a reader and a producer
    unpadded: tuple[str, ...] = ()  # readers with a kernel that see no zeros beyond the border of the image

    @property
    def groups(self) -> dict[str, str]:
        """Producer -> one that stands for its group."""
        return dict(_groups(self.reads, self.norms))

    @property
    def readers(self) -> dict[str, str]:
        """Reader with a kernel -> a producer of the group that it reads."""
        return {reader: self.groups[producer] for reader, producer in self.reads if reader not in self.norms}

    def norm_before(self, reader: str) -> str | None:
        """The BatchNorm that stands alone between the channels and their reader, if any."""
        return next((producer for one, producer in self.reads if one == reader and producer in self.norms), None)


@functools.cache
def _groups(reads: tuple[tuple[str, str], ...], norms: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    groups = {producer: producer for _, producer in reads}
    for layers in _together(reads, norms):
        members = {groups[layer] for layer in layers}
        first = next(group for group in groups.values() if group in members)
        groups = {layer: first if group in members else group for layer, group in groups.items()}
    return tuple(groups.items())


def _together(reads: tuple[tuple[str, str], ...], norms: tuple[str, ...]) -> Iterable[list[str]]:
    """Producers that have one reader; a norm that stands alone has the channels that it reads."""
    for reader in dict.fromkeys(reader for reader, _ in reads):
        layers = [producer for one, producer in reads if one == reader]
        yield [*layers, reader] if reader in norms and any(reader == producer for _, producer in reads) else layers
