"""Checkpoints of any parameters, in the formats of other libraries: in and out."""
