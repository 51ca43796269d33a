"""West wing: HTTP to the workers, and nothing else."""
