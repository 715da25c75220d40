"""Packs the tensors of a source, in memory, in a file or in the cache."""
