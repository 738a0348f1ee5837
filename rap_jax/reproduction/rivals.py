"""Methods of pruning in one frame: method, layer budget and sparsity, all from one dense network per seed.

The dense network, the recipe and the pruned networks of ADMM with equal shares by filters are those of the table
`robust`. Stages have equal epochs; a method differs from ADMM by the flags that its rule needs, in `_METHODS`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from rap_jax.reproduction import robust
from rap_jax.reproduction.cells import Builder
from rap_jax.reproduction.job import Job
from rap_jax.reproduction.recipes import MNIST, Family, Scale, Structure, training_job

_WIDTH = 8
_LAYERS = ("conv1", "conv2", "fc1")  # whose filters are pruned; the outputs stay
# What is pruned -> its name in the table, and percent of zeros.
_STRUCTURES: Mapping[Structure, tuple[str, tuple[float, ...]]] = MappingProxyType(
    {"irregular": ("single weights", (90, 95, 99)), "filter": ("filters", (50, 75, 87.5))}
)
# From these percents on a network answers one class after the cut: as at its first start, the radius has to rise.
_HARSH: Mapping[Structure, float] = MappingProxyType({"irregular": 99, "filter": 87.5})


@dataclasses.dataclass(frozen=True)
class _Method:
    name: str  # in the table
    irregular: tuple[str, ...]  # layer budgets
    filter: tuple[str, ...]
    flags: tuple[str, ...] = ()  # of its stage
    cuts_early: bool = True  # begins its stage with the cut, or makes it soon after


# `--prune_method` -> the method.
_METHODS: Mapping[str, _Method] = MappingProxyType(
    {
        "admm": _Method("ADMM", ("layer", "global", "erk", "lamp"), ("layer", "erk", "lamp"), cuts_early=False),
        "magnitude": _Method("magnitude", ("layer", "lamp"), ("layer", "lamp")),
        "random": _Method("random", ("layer",), ("layer",)),
        # Adam at the recipe's 3e-3 moves scores, which start at norms of weights, as it moves weights.
        "hydra": _Method("HYDRA", ("layer", "lamp"), ("layer", "lamp")),
        # The authors' SGD at 0.1, since Adam at 3e-3 hardly moves the shares; the weights are fixed, so a large rate
        # breaks none. Growth: 0.05 for 4 epochs gives HARP's term the weight that their 0.01 has after 20.
        "harp": _Method(
            "HARP",
            ("global",),
            ("global",),
            ("--admm_optimizer=sgd", "--admm_learning_rate=0.1", "--harp_growth=0.05"),
        ),
        # The authors' decay of both factors: without it the factors are another form of the same weights.
        "twinrep": _Method("TwinRep", ("global",), ("global",), ("--admm_weight_decay=2e-4",)),
        # Its own interval of half an epoch: 8 exchanges. By filters it does not work.
        "flyingbird": _Method("FlyingBird", ("layer", "erk"), ()),
    }
)


def pruned(
    scale: Scale, family: Family, method: str, budget: str, structure: Structure, percent: float, width: int, seed: int
) -> Job:
    """The dense network of the table `robust`, pruned by a method and trained on, with that recipe."""
    to = width * (1 - percent / 100)
    if (method, budget, structure) == ("admm", "layer", "filter") and to >= 1 and to.is_integer():
        return robust.pruned(scale, family, width, int(to), seed)
    share = f"{percent / 100:g}"
    sparsity = share if structure == "irregular" else ",".join(f"{layer}:{share}" for layer in _LAYERS)
    flags = ["--pretrain_epochs=0", f"--sparsity={sparsity}", f"--structure={structure}", f"--prune_method={method}"]
    flags += [f"--budget={budget}", *_METHODS[method].flags]
    if _METHODS[method].cuts_early:
        flags.append(f"--admm_epsilon_ramp_epochs={min(1, scale.robust_epochs / 6):g}")
    if percent >= _HARSH[structure]:
        flags.append(f"--retrain_epsilon_ramp_epochs={min(2, scale.robust_epochs / 6):g}")
    start = (("start_run", (robust.dense(scale, family, width, seed),)),)
    kind = f"rivals_{method}_{budget}_{structure}_{percent:g}"
    return training_job(scale, family, kind, width, seed, tuple(flags), inputs=start, flagfile=robust.FLAGFILE)


def methods(scale: Scale) -> Builder:
    """Cells of the table `rivals`; a scale without the width takes its widest."""
    build = Builder(dataclasses.replace(scale, num_seeds=scale.rival_seeds or scale.num_seeds), MNIST)
    build.by_block = True
    width = min(_WIDTH, build.max_width)
    build.reaches(_WIDTH, f"pruned from w={_WIDTH}, here from w={width}")
    for structure, (name, percents) in _STRUCTURES.items():
        for method, settings in _METHODS.items():
            budgets = settings.irregular if structure == "irregular" else settings.filter
            for budget in budgets:
                for percent in percents:
                    jobs = build.over_seeds(pruned, method, budget, structure, percent, width)
                    build.add_tested(f"{name}, {settings.name}, {budget}", f"{percent:g}%", jobs, None, attacked=True)
    return build
