"""The model: one block for every family, its parts as tables, and where taps and edits look."""
