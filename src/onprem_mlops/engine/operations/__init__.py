"""The operations that roles are written with: read what is, yield the commands that are missing, nothing else."""
