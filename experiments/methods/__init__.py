"""The rows of the tables and how their merges are made."""
