"""Helpers that every other package uses: text for messages, JSON, files, sizes, progress, cache entries."""
