"""Files that hold a network and run without this package, or that this package reads back.

subject          the network of a run, in the smallest form that computes the same
files            the four formats: write_file, open_file
opened           what open_file returns
metadata         what a file says of itself
stablehlo_file   `jax.export`: any batch, CPU, CUDA and TPU, with its gradient
onnx_file        ONNX; onnx_graph, onnx_rules and onnx_fusion write it from a jaxpr
npz_file         plain arrays, with zeros packed (sparse_arrays): npz_bytes, read_npz
safetensors_file the state_dict of a PyTorch twin, under the names of pytorch_names
int8             an ONNX file with 8-bit weights and activations
onnx_robustness  what an ONNX file withstands
optional         packages that only an export needs

subject = open_subject("runs/lenet_mnist_mnist_seed0")
write_file(subject, "onnx", Path("network.onnx"))
"""

from rap_jax.config import FORMATS as FORMATS
from rap_jax.export.exported_network import Subject as Subject
from rap_jax.export.exported_network import open_subject as open_subject
from rap_jax.export.files import open_file as open_file
from rap_jax.export.files import write_file as write_file
from rap_jax.export.npz import read_npz as read_npz
