"""On a SLURM cluster: submission of jobs, what they run there, and what became of them."""
