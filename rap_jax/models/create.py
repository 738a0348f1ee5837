"""Networks by name. A new network is one Linen module in a file of its own and one entry of `_NETWORKS`."""

from rap_jax.config import ModelConfig, require
from rap_jax.models.conv_relu_pool import IMPLEMENTATIONS, Implementation
from rap_jax.models.initializers import kernel_initializer
from rap_jax.models.lenet import LeNetMnist
from rap_jax.models.model import Model, from_linen

# Each is built with width, num_classes, kernel_init and implementation.
_NETWORKS: dict[str, type[LeNetMnist]] = {
    "lenet_mnist": LeNetMnist,
}
NETWORKS: tuple[str, ...] = tuple(_NETWORKS)


def create_model(
    config: ModelConfig,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    implementation: Implementation = "auto",
) -> Model:
    """The network that `config` names.

    Args:
        config: name, width and initialisation.
        input_shape: (height, width, channels) of one image.
        num_classes: number of logits.
        implementation: how convolutions are computed: `auto`, `cells` or `xla`; see `conv_relu_pool`. The parameters
            and, up to rounding, the results do not depend on it.

    Returns:
        The model as pure functions.

    Raises:
        ValueError: for an unknown network, initialisation or implementation (the message lists the known ones), or an
            impossible shape.
    """
    require(config.name in _NETWORKS, "model name", config.name, f"one of {', '.join(NETWORKS)}")
    require(implementation in IMPLEMENTATIONS, "implementation", implementation, f"one of {', '.join(IMPLEMENTATIONS)}")
    module = _NETWORKS[config.name](
        width=config.width,
        num_classes=num_classes,
        kernel_init=kernel_initializer(config.initializer),
        implementation=implementation,
    )
    return from_linen(module, input_shape=input_shape, num_classes=num_classes, output_layer=module.OUTPUT_LAYER)
