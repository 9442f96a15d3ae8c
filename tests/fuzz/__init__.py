"""Fuzzing of all that parses bytes which others wrote: `make fuzz MINUTES=10` (docs/TESTING.md)."""
