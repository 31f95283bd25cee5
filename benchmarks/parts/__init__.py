"""What `python -m benchmarks.run` measures, one module per part.

Every module has ``measure(smoke) -> dict``: figures by name. CPU seconds are those of
one process, so that other work on the machine changes them little; a part runs in a
process of its own.
"""
