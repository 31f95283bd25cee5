"""Data sets: in memory where they are small, read as they are needed where not."""
