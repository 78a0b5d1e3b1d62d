"""Pure functions of arrays: statistics, what is massive, the mechanism, the loss."""
