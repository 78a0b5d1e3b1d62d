"""The check that a text is valid Unicode."""

from jax_massact.errors import DataError


def check_unicode(text: str, name: str) -> None:
    """Raises DataError if a text holds a lone surrogate, which no encoding can express."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name} holds a lone surrogate at character {error.start}; expected: valid Unicode"
        ) from error
