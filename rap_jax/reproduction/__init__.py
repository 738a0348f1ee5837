"""The paper's tables as jobs, and their reports beside the paper's numbers: `launch.reproduce`.

paper      the numbers of Ye et al., 2019
recipes    the runs of a scale: widths, epochs, seeds; the paper's settings
robust     small networks by a stronger recipe, and what its parts are worth
rivals     methods of pruning, budgets and sparsities from one dense network
tables     each table and figure as cells and the jobs that fill them
job        a job: a command, its folder, the jobs it begins from
runner     jobs in order, several at once, resumable
seeds      which jobs are one command, since they differ by their seed alone
checks     whether what lies in a folder is a result of this very plan
results    what the results of a table's jobs say, cell by cell
formats    texts, numbers and sizes as a report writes them
figures    the figures of a table
report     report.md and report.html
"""
