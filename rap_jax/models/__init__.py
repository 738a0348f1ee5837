"""Networks as pure functions: the only part of the package that knows Flax Linen.

create          create_model: a `ModelConfig` -> a `Model`
model           Model (init, apply, logits, replace), Weights, passes in bfloat16
network         the base class of the networks
wiring          which layer reads which
lenet           the paper's LeNets for MNIST (also with BatchNorm) and CIFAR-10, of width w
vgg             VGG-16 with BatchNorm
resnet          ResNet-18
wide_resnet     WRN-28-k
cpu_forms       fast_on_cpu: any JAX function in the layers' forms for the CPU
layers/         convolution, BatchNorm, pooling, dense layers, initialisers; each in a form for CPUs and by XLA

model = create_model(ModelConfig("lenet_mnist", width=4), input_shape=(28, 28, 1), num_classes=10)
weights = model.init(jax.random.key(0))
logits = model.logits(weights, images)
"""

from rap_jax.models.create import FOLDED_AS as FOLDED_AS
from rap_jax.models.create import NETWORKS as NETWORKS
from rap_jax.models.create import create_model as create_model
from rap_jax.models.layers.convolution import IMPLEMENTATIONS as IMPLEMENTATIONS
from rap_jax.models.layers.convolution import Implementation as Implementation
from rap_jax.models.layers.convolution import use_cpu_form as use_cpu_form
from rap_jax.models.layers.initializers import INITIALIZERS as INITIALIZERS
from rap_jax.models.layers.pool import ConvReluPool as ConvReluPool
from rap_jax.models.model import Model as Model
from rap_jax.models.model import from_linen as from_linen
from rap_jax.models.model import in_dtype as in_dtype
from rap_jax.models.model import num_params as num_params
