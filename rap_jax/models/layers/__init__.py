"""Layers whose forms for CPU, GPU and TPU agree up to rounding; the networks are made of them."""
