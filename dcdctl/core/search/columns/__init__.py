"""The columns of indexed images: stored beside the vectors, changed without embedding, and compared by conditions."""
