"""Hostile files: the readers under fuzzing (readers.py), their mutations (mutate.py), the long run (fuzz.py)."""
