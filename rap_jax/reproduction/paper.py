"""The numbers of the paper (Ye et al., 2019, arXiv:1903.12561v2): natural and adversarial accuracy in percent.

Each is from a single run, at the epoch that was best on the test set. Pruned networks are named (width, width left).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

WIDTHS = (1, 2, 4, 8, 16)


class Accuracies(NamedTuple):
    """In percent, as printed."""

    natural: float
    adversarial: float


Cells = Mapping[tuple[int, int], Accuracies]


class PruningTable(NamedTuple):
    """Tables 2 to 4."""

    natural: Mapping[int, Accuracies]  # dense networks by width, trained without an attack
    adversarial: Mapping[int, Accuracies]  # likewise, trained under attack
    pruned: Cells


def _by_width(*pairs: tuple[float, float], widths: tuple[int, ...] = WIDTHS) -> Mapping[int, Accuracies]:
    return MappingProxyType({width: Accuracies(*pair) for width, pair in zip(widths, pairs, strict=True)})


def _triangle(*rows: tuple[tuple[float, float], ...]) -> Cells:
    """A row for each starting width from 2 on, its pruned widths from 1 on."""
    cells = {
        (width, to): Accuracies(*pair)
        for width, row in zip(WIDTHS[1:], rows, strict=True)
        for to, pair in zip(WIDTHS, row, strict=False)
    }
    return MappingProxyType(cells)


COLLAPSED = (11.35, 11.35)
TABLE_2 = PruningTable(
    _by_width((98.25, 0.0), (98.72, 0.0), (99.07, 0.0), (99.20, 0.0), (99.31, 0.0)),
    _by_width(COLLAPSED, COLLAPSED, (98.15, 91.38), (98.85, 93.51), (99.02, 94.65)),
    _triangle(
        (COLLAPSED,),
        ((96.22, 89.41), (97.68, 91.77)),
        ((97.31, 92.16), (98.31, 93.93), (98.87, 94.27)),
        ((96.19, 87.79), (98.07, 89.95), (98.87, 94.77), (99.01, 95.44)),
    ),
)
TABLE_3 = PruningTable(
    _by_width((74.84, 0.01), (78.41, 0.07), (83.36, 0.19), (85.12, 0.55), (87.22, 0.93)),
    _by_width((10.0, 10.0), (55.03, 33.29), (65.01, 36.30), (72.80, 37.67), (74.91, 38.65)),
    _triangle(
        ((50.3, 31.33),),
        ((53.30, 32.41), (62.77, 34.52)),
        ((52.27, 31.91), (62.22, 35.42), (70.50, 37.92)),
        ((51.28, 31.30), (62.10, 35.55), (70.59, 37.93), (71.93, 39.00)),
    ),
)
TABLE_4 = PruningTable(
    _by_width((84.23, 0.0), (87.05, 0.0), (91.93, 0.0), (93.11, 0.0), (94.80, 0.0)),
    _by_width((57.16, 34.40), (71.16, 42.45), (77.35, 44.99), (77.26, 47.28), (82.71, 49.31)),
    _triangle(
        ((64.53, 37.90),),
        ((64.36, 37.78), (73.21, 43.14)),
        ((64.52, 38.01), (73.36, 43.17), (78.12, 45.49)),
        ((64.17, 37.99), (71.80, 42.86), (78.85, 47.19), (81.83, 48.00)),
    ),
)
# Networks of the second width, trained from the initial weights that they inherit from the first.
TABLE_5 = _triangle(
    (COLLAPSED,),
    (COLLAPSED, COLLAPSED),
    (COLLAPSED, (97.36, 90.19), (98.64, 94.66)),
    (COLLAPSED, COLLAPSED, (98.42, 91.63), (98.96, 95.49)),
)
# Adversarial accuracy on images made on the dense network of a width, of the pruned network of two widths.
_TABLE_6_COLUMNS = ((16, 1), (8, 1), (4, 1), (16, 2), (8, 2), (4, 2), (16, 4), (8, 4), (16, 8))
_TABLE_6_ROWS = {
    4: (91.70, 93.77, 91.43, 94.95, 95.45, 93.55, 97.26, 96.56, 97.56),
    8: (92.13, 93.47, 92.06, 94.40, 94.30, 94.15, 96.21, 95.27, 96.46),
    16: (93.05, 94.3, 93.07, 94.37, 95.72, 94.75, 95.61, 96.31, 95.37),
}
TABLE_6: Mapping[tuple[int, int], Mapping[int, float]] = MappingProxyType(
    {
        pruned: MappingProxyType({source: row[number] for source, row in _TABLE_6_ROWS.items()})
        for number, pruned in enumerate(_TABLE_6_COLUMNS)
    }
)
TABLE_A1 = _triangle(
    ((64.39, 38.05),),
    ((62.49, 36.77), (73.47, 43.09)),
    ((60.40, 37.05), (72.52, 43.34), (78.64, 45.19)),
    ((60.26, 36.18), (69.47, 42.14), (78.59, 46.17), (80.79, 46.4)),
)
# LeNet of width 1 from scratch by initialisation, mean of 10 seeds, 300 epochs; rows Adam, SGD, cosine annealing.
OPTIMIZERS = ("Adam", "SGD", "CosAnneal")
INITIALIZATIONS = (
    "uniform", "normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal",
)  # fmt: skip
TABLE_B1: Mapping[tuple[str, str], Accuracies] = MappingProxyType(
    {(name, optimizer): Accuracies(*COLLAPSED) for name in INITIALIZATIONS for optimizer in OPTIMIZERS}
    | {("uniform", "Adam"): Accuracies(78.86, 70.47), ("kaiming_normal", "Adam"): Accuracies(19.68, 19.02)}
)
# Adversarial accuracy under C&W L-infinity: dense by width, and pruned.
TABLE_C1_DENSE: Mapping[int, float] = MappingProxyType({2: 11.35, 4: 91.42, 8: 93.57, 16: 94.78})
TABLE_C1: Mapping[tuple[int, int], float] = MappingProxyType(
    {
        (2, 1): 11.35, (4, 1): 89.63, (4, 2): 91.75, (8, 1): 92.33, (8, 2): 93.83, (8, 4): 94.46,
        (16, 1): 89.26, (16, 2): 91.34, (16, 4): 95.08, (16, 8): 95.62,
    }
)  # fmt: skip
# VGG-16 by width: natural accuracy of natural training; natural and adversarial accuracy of adversarial training.
FIGURE_1_NATURAL: Mapping[int, float] = MappingProxyType({16: 93.5, 8: 92.1, 4: 89.3})
FIGURE_1 = _by_width((76.93, 45.95), (74.31, 45.1), (70.32, 42.61), widths=(16, 8, 4))
# Pruned from width 16; the last is dense. Read from the figure's vector paths, +-0.01.
_FIGURE_3 = {
    ("vgg16", "filter"): ((52.13, 32.99), (63.66, 38.43), (71.32, 42.65), (76.24, 43.54), (76.93, 45.95)),
    ("vgg16", "column"): ((61.25, 36.47), (69.65, 41.53), (72.21, 43.91), (76.42, 45.20), (76.93, 45.95)),
    ("vgg16", "irregular"): ((74.44, 43.65), (78.06, 42.63), (78.43, 45.69), (79.45, 45.90), (76.93, 45.95)),
    ("resnet18", "filter"): ((64.10, 37.90), (71.80, 42.86), (78.85, 47.19), (81.83, 48.00), (82.71, 49.31)),
    ("resnet18", "column"): ((69.25, 41.15), (74.77, 45.71), (78.56, 46.85), (79.63, 46.50), (82.71, 49.31)),
    ("resnet18", "irregular"): ((79.54, 46.43), (81.60, 46.27), (82.19, 47.44), (82.14, 47.10), (82.71, 49.31)),
}
STRUCTURES = ("filter", "column", "irregular")
FIGURE_3: Mapping[tuple[str, str], Mapping[int, Accuracies]] = MappingProxyType(
    {case: _by_width(*values) for case, values in _FIGURE_3.items()}
)
