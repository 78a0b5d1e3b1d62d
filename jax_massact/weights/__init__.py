"""Checkpoints: from a file to a decoder, by format and by table of names."""
