"""Layers whose forms for CPU, GPU and TPU agree up to rounding; the networks are made of them.

linear          Conv, ConvNorm, Dense, DenseNorm: the layers with a kernel
pool            max_pool; ConvReluPool and ConvNormReluPool, each as one layer
batch_norm      batch normalisation as PyTorch has it
initializers    the initialisations of the paper's Table B1
convolution     the convolution itself, by XLA and in a form for the CPU
winograd        its form with fewer multiplications
"""
