"""The weights of a model: their slots, shapes and formats, and the packed file."""
