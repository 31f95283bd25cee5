"""Rendered rooms with exact labels for twelve tasks, in place of Taskonomy's data."""
