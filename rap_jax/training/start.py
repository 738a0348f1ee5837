"""The network of a run and its first weights: drawn from its seed, or taken from a run that has finished.

    random       model.init of the run's seed
    final        the final network of another run: to go on with it, or to prune it further (progressive pruning)
    initial      the initial weights of that run, where its final network is not zero: a smaller network that inherits
                 its initialisation from a larger one (Ye et al., 2019, Table 5; the lottery ticket of Frankle & Carbin,
                 2019, https://arxiv.org/abs/1803.03635). If that run went on with the network of a third one, the
                 initialisation is that of the third.

The other run may have a network that is ours after folding (`FOLDED_AS`): its BatchNorm is folded then. So a
`lenet_mnist` can begin with weights that were trained as a `lenet_mnist_bn`.

Differs from the paper: (1) the inheriting network keeps the shapes of the large one, with the pruned filters at exactly
zero in every stage. A filter that is zero sends zero and gets no gradient, so this trains the same function as a dense
network of the small width would (a test compares the two for LeNet), and it also works where layers add up and no
channel could be removed.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh, Sharding

from rap_jax._runtime.integrity import digest
from rap_jax._runtime.mesh import first_device_sharding, put
from rap_jax.compaction import fold_batch_norm
from rap_jax.config import ComputeConfig, RunConfig
from rap_jax.data import Dataset
from rap_jax.models import FOLDED_AS, Implementation, Model, create_model
from rap_jax.models.model import Weights
from rap_jax.pruning import specs as specs_lib
from rap_jax.pruning.masks import apply_masks
from rap_jax.runs.network import SavedNetwork, load_network
from rap_jax.training.state import stream_key


class Start(NamedTuple):
    """The first weights of a run and their origin."""

    weights: Weights  # of its first stage
    initial: Weights  # drawn at random once, before any training
    about: dict[str, Any]  # the origin, for config.json and results.json


def make_model(config: RunConfig, dataset: Dataset, compute: ComputeConfig, mesh: Mesh) -> Model:
    """The network of a run on the images and classes of its data, in the form for the devices of the mesh."""
    shape, num_classes = dataset.train.images.shape[1:], dataset.num_classes
    implementation = choose_implementation(compute, mesh)
    return create_model(config.model, input_shape=shape, num_classes=num_classes, implementation=implementation)


def choose_implementation(compute: ComputeConfig, mesh: Mesh) -> Implementation:
    """That of the config; `auto` asks the default backend, and is xla for a mesh of other devices than CPUs."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return "xla" if compute.implementation == "auto" and not on_cpu else compute.implementation


def make_start(config: RunConfig, dataset: Dataset, model: Model, mesh: Mesh) -> Start:
    """The weights of a run's first stage, with the `first_device_sharding` of the mesh.

    Raises:
      ValueError: the other run has not finished, has another network, nothing that could be inherited, or learnt from
        images that this run holds out for validation.
    """
    place = first_device_sharding(mesh)
    if config.start.run_dir is None:
        init = jax.jit(model.init, out_shardings=place)
        drawn = init(stream_key(config.seed, "init"))
        return Start(drawn, drawn, {"weights": "random"})
    other = load_network(config.start.run_dir, place)
    if FOLDED_AS.get(other.config.name) == config.model.name:
        other = _folded(other, place)
    _require_same_network(config, model, other)
    _require_same_split(config, dataset, other)
    inherits = config.start.weights == "initial"
    weights = _inherited(config, other) if inherits else other.weights
    about = {"weights": config.start.weights, "sha256": digest(weights), "dataset": other.results["dataset"]}
    return Start(weights, weights if inherits else other.initial, about)


def _folded(other: SavedNetwork, place: Sharding) -> SavedNetwork:
    """The same network under the name that it has without its BatchNorm."""
    fold = lambda weights: jax.tree.map(lambda leaf: put(leaf, place), fold_batch_norm(other.model, *weights).weights)
    config = dataclasses.replace(other.config, name=FOLDED_AS[other.config.name])
    return other._replace(config=config, weights=fold(other.weights), initial=fold(other.initial))


def _require_same_network(config: RunConfig, model: Model, other: SavedNetwork) -> None:
    theirs = (other.config.name, other.config.width, other.model.input_shape, other.model.num_classes)
    ours = (config.model.name, config.model.width, model.input_shape, model.num_classes)
    if theirs != ours:
        show = "{0} of width {1}, images {2}, {3} classes".format
        raise ValueError(f"The network in {config.start.run_dir} is {show(*theirs)}; expected {show(*ours)}.")


def _require_same_split(config: RunConfig, dataset: Dataset, other: SavedNetwork) -> None:
    """Training images of one run must not evaluate the other: of the same data both hold out the same images."""
    names = ("validation_fraction", "validation_seed")
    data, ours = other.results["data"], dataset.describe()
    if data["sha256"] != ours["sha256"]:
        message = "The run in %s learnt from %s. If images of it are held out from %s here, the results are too good."
        logging.warning(message, config.start.run_dir, other.results["dataset"], dataset.name)
    elif any(data[name] != ours[name] for name in names):
        theirs, given = ({name: values[name] for name in names} for values in (data, ours))
        raise ValueError(
            f"The split here is {given}; expected {theirs}, as in {config.start.run_dir}: it learnt from images that "
            f"would be held out here. Give --validation_seed={data['validation_seed']} "
            f"--validation_fraction={data['validation_fraction']}."
        )


def _inherited(config: RunConfig, other: SavedNetwork) -> Weights:
    """The initial weights of the other run, zero where its final network is zero."""
    masks = specs_lib.masks_of_zeros(other.weights.params)
    if all(bool(keep.all()) for keep in jax.tree.leaves(masks)):
        raise ValueError(f"The network in {config.start.run_dir} has no zeros; expected one that was pruned.")
    return other.initial._replace(params=apply_masks(masks, other.initial.params))
