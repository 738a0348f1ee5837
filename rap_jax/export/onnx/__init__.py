"""ONNX files, written from a jaxpr.

file         onnx_model, open_session; the checksum at the end of a file
graph        nodes, constants, and their fusion
rules        one rule per JAX primitive
int8         write_int8: quantised weights and activations
robustness   accuracies of a file under transferred PGD images and Square
"""
