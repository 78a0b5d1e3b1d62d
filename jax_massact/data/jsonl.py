"""JSON lines: a document in one field of every line."""

import json
from collections.abc import Iterator

from jax_massact.data.files import open_binary
from jax_massact.data.unicode import check_unicode
from jax_massact.errors import DataError


class JsonLines:
    """The documents of a file, read anew each time they are iterated over."""

    def __init__(self, path: str, field: str) -> None:
        """Takes the text of `field` in every line."""
        self._path = path
        self._field = field

    def __iter__(self) -> Iterator[str]:
        with open_binary(self._path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield self._text(line, f"{self._path}, line {number}")

    def _text(self, line: bytes, where: str) -> str:
        expected = f"expected: an object with a text in the field {self._field!r}"
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:  # of UTF-8 and of JSON
            raise DataError(f"{where} is not JSON in UTF-8: {error}; {expected}") from error
        if not isinstance(record, dict):
            raise DataError(f"{where} holds a {type(record).__name__}; {expected}")
        text = record.get(self._field)
        if not isinstance(text, str):
            found = json.dumps(text)[:40] if self._field in record else "missing"
            texts = [key for key, other in record.items() if isinstance(other, str)]
            names = f"; text_field can name {', '.join(map(repr, texts))}" if texts else ""
            raise DataError(f"{where}: the field {self._field!r} is {found}; {expected}{names}")
        check_unicode(text, where)
        return text
