"""Finds, downloads, opens and checks the files of a model."""
