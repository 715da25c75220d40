"""From the tensors of a source to packed weights, in memory, in a file or in the cache."""
