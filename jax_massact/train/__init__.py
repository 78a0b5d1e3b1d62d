"""Training: the step, the loop around it, its checkpoints, and what is watched meanwhile."""
