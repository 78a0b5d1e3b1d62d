"""Joining processes, supervising them, locks."""
