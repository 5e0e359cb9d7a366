"""Slurm through its commands, releases 22.05 to 26.05. Asking (`ask`, `client`) and parsing (`text`) are apart."""
