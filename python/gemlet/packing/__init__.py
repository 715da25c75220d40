"""Packs the tensors of a model's files into the core's formats: into memory, into a file or into the
cache."""
