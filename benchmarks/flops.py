"""Floating-point operations of a forward pass, counted by hand.

Two per multiplication and addition of a convolution or dense layer, for every tap of every output, those in the padding
too; everything else (bias, BatchNorm, ReLU, pooling) is left out. It is what the network asks for, not what an
implementation does: one that computes zeros in a tile gets nothing for them.
"""


def forward_flops(model: str, width: int) -> int:
    """Operations for one image.

    Args:
      model: `lenet_mnist` (28x28x1) or `resnet18` (32x32x3), with 10 classes.
      width: the paper's w.
    """
    return {"lenet_mnist": _lenet, "resnet18": _resnet18}[model](width)


def _conv(size: int, kernel_size: int, inputs: int, outputs: int) -> int:
    """`size` is the height and width of the outputs."""
    return 2 * size * size * kernel_size * kernel_size * inputs * outputs


def _dense(inputs: int, outputs: int) -> int:
    return 2 * inputs * outputs


def _lenet(width: int) -> int:
    convs = _conv(28, 5, 1, 2 * width) + _conv(14, 5, 2 * width, 4 * width)
    return convs + _dense(7 * 7 * 4 * width, 64 * width) + _dense(64 * width, 10)


def _resnet18(width: int) -> int:
    total, inputs = _conv(32, 3, 3, 4 * width), 4 * width
    for size, outputs in ((32, 4 * width), (16, 8 * width), (8, 16 * width), (4, 32 * width)):
        shortcut = _conv(size, 1, inputs, outputs) if inputs != outputs else 0
        total += _conv(size, 3, inputs, outputs) + 3 * _conv(size, 3, outputs, outputs) + shortcut
        inputs = outputs
    return total + _dense(inputs, 10)
