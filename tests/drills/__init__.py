"""Drills: faults put on the real training commands from outside. Each is `python -m tests.drills.<name> --rounds N [--seed S]`."""
