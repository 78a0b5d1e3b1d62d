"""What a user does with a model: a folder a study, and what all studies share."""
