"""Side by side with what a user would otherwise use: `python -m tests.benchmarks [rows]` (docs/BENCHMARKS.md)."""
