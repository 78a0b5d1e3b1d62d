"""A page taken apart: its elements, its data blocks and its text."""

from html.parser import HTMLParser
from pathlib import Path


class Reader(HTMLParser):
    """The elements, their attributes, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.blocks: dict[str, str] = {}
        self.text = ""
        self._raw: str | None = None

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._raw = dict(attrs).get("id") or ""

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._raw = None

    def handle_data(self, data):
        if self._raw is None:
            self.text += data
        elif self._raw:
            self.blocks[self._raw] = self.blocks.get(self._raw, "") + data

    def tags(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag == name]


def read_page(page: Path | str) -> Reader:
    """A page, or a piece of one, from its file or its text."""
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8") if isinstance(page, Path) else page)
    return reader
