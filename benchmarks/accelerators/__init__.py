"""What `benchmarks.accelerator` measures on one accelerator, row by row; each part has its rows in a module.

session          settings of a call, rows, and the loop over them
row_log          finished rows, one JSON object a line
process          processes that measure: an error, a crash or a hang ends one row alone
device           which accelerator there is
autoattack       AutoAttack against the official code; `attacked` reads the network and the images
job              the main job and its evaluation
steps, memory    training steps and their peak memory, against PyTorch
seeds            several networks in one program
equality         the accelerator against the CPU
tables           the rows as tables

Modules called `*_worker` run in processes of their own; those of PyTorch are `benchmarks.pytorch.accelerator_*`.
"""
