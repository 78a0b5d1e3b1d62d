"""The decoder: one block for every family, its attention, its norms, and where taps look."""
