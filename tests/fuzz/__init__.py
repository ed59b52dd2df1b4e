"""Readers of uploaded files, given bytes nobody wrote: they return, or they refuse, and do nothing else."""
