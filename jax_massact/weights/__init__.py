"""Formats of files: from bytes to named tensors and settings."""
