"""Golden vectors: coverage models, the .vec grammar, sets by name, the manifest."""
