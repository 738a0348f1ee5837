"""Networks as pure functions: the only part of the package that knows Flax Linen.

create          create_model: a `ModelConfig` -> a `Model`
model           Model (init, apply, input_shape, num_classes), from_linen, num_params
network         the base class of the networks
lenet           the paper's MNIST LeNet of width w
lenet_cifar     the paper's CIFAR LeNet
vgg             VGG-16 with BatchNorm
resnet          ResNet-18
wide_resnet     WRN-28-k
conv            convolution, fast inside an attack on the CPU
conv_norm       convolution and BatchNorm as one layer
conv_relu_pool  convolution + ReLU + max pooling, fast inside an attack on the CPU
pool            2x2 max pooling
batch_norm      PyTorch's BatchNorm
dense           a dense layer with PyTorch's start
initializers    the initialisations of the paper's Table B1 by name
implementation  how convolutions are computed: for the CPU or by XLA
mixed_precision passes in bfloat16 between float32 weights and float32 logits

model = create_model(ModelConfig("lenet_mnist", width=4), input_shape=(28, 28, 1), num_classes=10)
params, batch_stats = model.init(jax.random.key(0))
logits, _ = model.apply(params, batch_stats, images, train=False)
"""

from rap_jax.models.create import NETWORKS as NETWORKS
from rap_jax.models.create import create_model as create_model
from rap_jax.models.layers.conv_relu_pool import ConvReluPool as ConvReluPool
from rap_jax.models.layers.implementation import IMPLEMENTATIONS as IMPLEMENTATIONS
from rap_jax.models.layers.implementation import Implementation as Implementation
from rap_jax.models.layers.implementation import use_cpu_form as use_cpu_form
from rap_jax.models.layers.initializers import INITIALIZERS as INITIALIZERS
from rap_jax.models.model import Model as Model
from rap_jax.models.model import from_linen as from_linen
from rap_jax.models.model import in_dtype as in_dtype
from rap_jax.models.model import num_params as num_params
