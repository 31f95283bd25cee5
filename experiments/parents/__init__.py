"""The networks that are merged, with their data, tasks and architectures."""
