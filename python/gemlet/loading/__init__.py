"""From files to a loaded model, to a packed folder, or to a description."""
