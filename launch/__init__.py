"""Commands: the only place with flags. Each module is a thin shell around `rap_jax`.

main, evaluate, export, predict, reproduce   the commands; `run()` of each is a console script
flags, *_flags      the flags of a command, most of them from the fields of `rap_jax.config`
settings, parsers   from a field to a flag and back
configs             from flags to configs
flagfiles, flag_lines   recipes by name, and the lines of a flagfile
command, help       what all commands have in common
seeds               several seeds in one process
plan, job_configs   what `reproduce` does
*.flags             recipes
"""
