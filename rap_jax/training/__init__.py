"""A run: the stages in turn, from a config to a report.

pipeline         pretrain, ADMM, retrain; the test set once
seeds            several runs that differ by their seed, in one process
together         their training, stage by stage
stage            one stage: its training, alone or on the network without its removed filters
task             what the stages of a run share, and the training that a stage asks for
hooks            log, residuals of ADMM, validation, checkpoints
loop             the training loop: a generator of steps, and hooks
step             one training step as pure functions: prepare, attack, update
sharded_step     these compiled for the devices
seeds_step       a step of several networks
optimizer        the plan of a stage in steps, its schedule and its optimizer chain
state            TrainState and random streams
input            the batches of a stage: from the devices, or from disk
start            the first weights of a run
provenance       the description of a run for results.json
forecast         steps, memory and traffic of a run, before it is started
report           report.md and its pictures
"""
