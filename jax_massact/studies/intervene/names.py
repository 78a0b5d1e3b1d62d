"""What the interventions on images are called in reports."""

CHANGES = {
    "zero": "set to zero",
    "mean": "set to the mean of the other pictures",
    "shuffle": "set to another picture's value",
    "control_random": "control: a random vector of the same length added",
    "control_next": "control: the next largest dimension set to zero",
}
