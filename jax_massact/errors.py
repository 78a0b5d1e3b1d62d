"""Errors that the user can fix.

The command line prints their text alone, without a traceback. Each says what was wrong, where,
and what is expected.
"""


class UserError(ValueError):
    """Base of every error whose cause is outside this package: a file, a setting, a text."""


class ConfigError(UserError):
    """A setting is unknown or out of its range, or two settings contradict each other."""


class WeightsError(UserError):
    """A checkpoint cannot be read as the model it says it is."""


class DataError(UserError):
    """A text, tokenizer or data set cannot serve the sequences that were asked for."""


class ResourceError(UserError):
    """A named resource could not be fetched, or is not the file that was pinned."""
