"""Files that hold a network and run without this package, or that this package reads back.

exported_network   the network of a run, in the smallest form that computes the same, and its metadata
files              write_file, open_file: the four formats
open_file          what open_file returns, and image files as it takes them
stablehlo          `jax.export`: any batch, CPU, CUDA and TPU, with its gradient
onnx/              ONNX, written from a jaxpr; int8; the robustness of an ONNX file
npz                plain compressed arrays: npz_bytes, read_npz
safetensors        the state_dict of the same network in PyTorch

exported = open_exported_network("runs/lenet_mnist_mnist_seed0")
write_file(exported, "onnx", Path("network.onnx"))
"""

from rap_jax.config import FORMATS as FORMATS
from rap_jax.export.exported_network import ExportedNetwork as ExportedNetwork
from rap_jax.export.exported_network import open_exported_network as open_exported_network
from rap_jax.export.files import open_file as open_file
from rap_jax.export.files import write_file as write_file
from rap_jax.export.npz import read_npz as read_npz
