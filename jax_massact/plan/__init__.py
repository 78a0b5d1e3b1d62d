"""A training run on devices that are not here: memory, traffic, time."""
