"""Hostile files: the readers under test (readers.py), mutations (mutate.py), and long runs (fuzz.py)."""
