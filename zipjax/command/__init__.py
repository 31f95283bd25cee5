"""The command: ``zipjax merge`` and its tools, for files and an importable function."""
