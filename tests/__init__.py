"""Tests mirror src/medley; benchmarks are in bench/."""
