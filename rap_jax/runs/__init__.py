"""The folder of a run: what lies in it, how it is written and read back.

folder       the files of a run; lock; refusal of another run
metrics      the lines of metrics.jsonl, each with its checksum
checkpoint   Orbax checkpoints with digests
network      the network of a finished run
"""
