"""What the interventions on images are called in reports."""

CHANGES = {
    "zero": "set to zero",
    "mean": "set to the mean of the other pictures",
    "shuffle": "set to another picture's value",
    "registers_zero": "registers set to zero at every block's input",
    "registers_mean": "registers set to their mean over the other pictures, likewise",
    "registers_shuffle": "registers set to another picture's, likewise",
    "control_random": "control: a random vector of the same length added",
    "control_next": "control: the next largest dimension set to zero",
}
