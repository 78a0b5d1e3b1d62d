"""What the changes of `massact registers` are called in reports."""

ARMS = {
    "original": "unedited",
    "register": "neurons moved to an appended token",
    "kv_bias": "neurons set to zero, the token's mean as k', v'",
    "zeroed": "control: the neurons set to zero",
    "appended": "control: an empty token appended",
    "random": "control: other neurons moved to the token",
    "random_zeroed": "control: other neurons set to zero",
}
