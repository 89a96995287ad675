"""Benchmarks: `python -m tests.bench.NAME [--quick]`; the last line of standard output is one JSON object."""
