"""What networks learn: one module for every kind of task; see ``kinds.py``."""
