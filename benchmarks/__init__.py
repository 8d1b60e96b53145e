"""Measurements against the public code. `python -m benchmarks.run_all --peer PATH` makes the whole table; each script also runs alone."""
