"""The weights of a model: slots, shapes, formats, and packed files."""
