"""The networks that a plan's jobs compute with, at random weights, for timing: whole, and without what a cut removes.

What is removed is found as in a run, by a cut, so that every network and structure gets the size that it will have: of
filters that add up only those go that go everywhere. Which ones go is chance here; where that does not matter, as in a
LeNet, the size is exact.
"""

import dataclasses

import chex
import jax
import numpy as np

from rap_jax.compaction import compact, compaction_plan, shrink
from rap_jax.compaction.cut import cut, masks_of_cut
from rap_jax.config import RunConfig, Stage
from rap_jax.models import Implementation, Model, create_model
from rap_jax.models.model import Weights
from rap_jax.pruning import specs as specs_lib
from rap_jax.pruning.masks import both
from rap_jax.pruning.specs import Specs
from rap_jax.reproduce.sizes import Sizes
from rap_jax.training.optimizer import specs_from_config


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network to be timed. Two are equal if they take the same time: of one kind and of the same shapes.

    Attributes:
      name: of the network.
      shapes: of all its weights, and whether BatchNorm is folded.
      implementation: of its convolutions.
      model, weights: to compute with.
    """

    name: str
    shapes: tuple[object, ...]
    implementation: Implementation
    model: Model = dataclasses.field(compare=False, repr=False)
    weights: Weights = dataclasses.field(compare=False, repr=False)


class Networks:
    """Those of one training job.

    Args:
      config: of the job.
      sizes: of its data.
      implementation: of its convolutions.
      start: what the job is that it goes on from, or None.
    """

    def __init__(self, config: RunConfig, sizes: Sizes, implementation: Implementation, start: "Networks | None"):
        self._config, self._implementation, self._start = config, implementation, start
        self._model = create_model(
            config.model,
            input_shape=sizes.image_shape,
            num_classes=sizes.num_classes,
            implementation=implementation,
        )
        self._weights = _drawn(self._model) if start is None else start.final
        self._specs: Specs = specs_from_config(
            config.prune, self._weights.params, output_layer=self._model.output_layer
        )

    @property
    def is_cut(self) -> bool:
        """Whether anything is pruned."""
        return bool(self._specs)

    @property
    def final(self) -> Weights:
        """Zero where those are that the job ends with."""
        return Weights(*jax.tree.map(np.asarray, cut(self._specs, self._model, self._weights)))

    @property
    def whole(self) -> Subject:
        """The network as it is declared, which all but the retrain compute with."""
        return self._subject(self._model, self._weights)

    def of_stage(self, stage: Stage) -> Subject:
        """What a stage trains and selects by: in the retrain the network without its removed filters."""
        if stage != "retrain" or not self._config.small_retrain:
            return self.whole
        weights, masks = self.final, self._masks()
        plan = compaction_plan(self._model.wiring, weights.params, masks)
        small = Weights(*(shrink(plan, tree) for tree in weights))
        return self._subject(self._model.remake(features=plan.features), small) if plan.features else self.whole  # type: ignore[misc]

    @property
    def attacked(self) -> Subject:
        """What an evaluation attacks: the network without what counts for nothing."""
        weights = self.final
        try:
            small = compact(self._model, *weights)
        except ValueError:  # a layer would vanish
            return self.whole
        return self._subject(small.model, Weights(small.params, small.batch_stats))

    def _masks(self) -> chex.ArrayTree | None:
        masks = masks_of_cut(self._specs, self._model, self._weights.params) if self._specs else None
        if self._start is None:
            return masks
        zeros = specs_lib.masks_of_zeros(self._weights.params)
        return zeros if masks is None else both(masks, zeros)

    def _subject(self, model: Model, weights: Weights) -> Subject:
        shapes = tuple((jax.tree_util.keystr(path), leaf.shape) for path, leaf in jax.tree.leaves_with_path(weights))
        return Subject(self._config.model.name, (*shapes, model.folded), self._implementation, model, weights)


def _drawn(model: Model) -> Weights:
    """Random kernels; scales and variances of one, all else zero. Without compiling, unlike `model.init`."""
    generator = np.random.default_rng(0)

    def draw(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            return generator.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return Weights(*(jax.tree.map_with_path(draw, tree) for tree in shapes))
