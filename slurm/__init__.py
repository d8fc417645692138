"""Fan-out: independent tasks in, results out. Nothing here knows what the tasks are about."""
