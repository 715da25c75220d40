"""Loads, converts or describes a model from its files."""
