"""A model's files, wherever they are: found, fetched, opened and checked."""
