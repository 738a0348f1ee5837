"""The folder of a run, and what is read back from it.

folder       open_run_folder: its files, its lock
metrics      metrics.jsonl: lines with a checksum each
checkpoint   Orbax checkpoints with a digest of every array
network      load_network: the network of a finished run
"""
