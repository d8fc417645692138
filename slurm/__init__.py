"""Runs independent tasks on this machine or on a Slurm cluster, whatever the tasks do."""
