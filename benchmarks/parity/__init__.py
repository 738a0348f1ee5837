"""Attacks of `rap_jax` against the official code (PyPI package pyautoattack), piece by piece.

subject         a network in both frameworks, and the images it is attacked on
traces          what an attack did, as NumPy arrays; both sides write the same kind
stream          the random numbers of Square, drawn beforehand
ours            the attacks of rap_jax, recorded
compare         two traces -> measured values beside their bars
deterministic   both sides from the same starts and random numbers
own_randomness  both sides under their own seeds
statistics      agreement of two sides, and whether they differ by chance
speed, worker   examples per second, each side in a process of its own
kept            finished pieces on disk
tiny_network    a network of a few numbers
reference       what the official code makes of that, in a file for the tests

The other side is in `benchmarks.pytorch.official_*`, the only modules here that need PyTorch.
"""
