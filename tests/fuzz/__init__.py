"""Hostile files: the readers under test (readers.py), mutations (mutate.py), the long run (fuzz.py)."""
