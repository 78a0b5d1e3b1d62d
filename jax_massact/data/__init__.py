"""Text in, fixed-shape arrays of token ids out. Nothing here knows of models."""
