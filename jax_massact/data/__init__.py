"""Text in, fixed-shape arrays of token ids out. Knows nothing of models."""
