"""Models that specs are inferred for, shared by the benchmarks and the tests."""
