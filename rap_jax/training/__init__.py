"""A run: the stages in turn, from a config to a report.

pipeline         pretrain, ADMM, retrain; the test set once
stage            one stage: steps, validation, checkpoints
compact_stage    a stage on the network without its removed filters
step             one training step as pure functions: prepare, attack, update
sharded_step     these compiled for the devices
optimizer        schedule and optimizer chain of a stage
state            TrainState and random streams
input            where a step finds its batch: on the devices, or on disk
start            the weights that a run begins with
provenance       what results.json says of a run
forecast         steps, memory and traffic of a run, before it is started
report           report.md and its pictures
"""
