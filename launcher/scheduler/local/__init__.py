"""The embedded scheduler: runs the sbatch scripts that Slurm would run, on this computer, with nothing to start.

    client      submit, jobs, find, cancel: reads and writes the table, starts a supervisor where there is none
    table       SQLite: the jobs, the only shared state
    supervisor  one detached process while there is work: dependencies, resources, starts; ends by itself
    stepd       one process per running job: the batch shell, time limit, signals, the exit code
    srun        the command in jobs: starts the tasks of a step
    placement   its options, and which tasks and GPUs they put on which node
    scontrol    the command in jobs: requeue, show hostnames

A process that is killed loses nothing: what a job needs is in the table and in its folder, what became of it is
written by its stepd, and the next command that reads jobs starts a supervisor again. Memory is counted, not enforced.
"""
