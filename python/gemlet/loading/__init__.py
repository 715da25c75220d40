"""Makes a loaded model, a packed folder or a description from the files of a model."""
