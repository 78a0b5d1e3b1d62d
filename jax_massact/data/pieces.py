"""Pieces: how vocabularies spell them, what they read, and which kind of token they are."""

import re
from typing import Literal

TokenKind = Literal["delimiter", "other"]

SPACE = "\u2581"  # how SentencePiece writes a space
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_DELIMITERS = frozenset(".,;:!?…。，、；：！？")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: itself where Latin-1 prints it, else characters from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()
BYTE_PIECES = sorted(_BYTES, key=_BYTES.__getitem__)
"""The pieces of a byte-level vocabulary that stand for the bytes 0 to 255."""


def byte_level_text(piece: str) -> str:
    """The text of a piece of a byte-level vocabulary, whose bytes are spelled as GPT-2 does."""
    if any(character not in _BYTES for character in piece):
        return piece
    return bytes(_BYTES[c] for c in piece).decode("utf-8", errors="backslashreplace")


def sentencepiece_text(piece: str) -> str:
    """The text of a piece of a SentencePiece vocabulary."""
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:
        return bytes([int(byte[1], 16)]).decode("utf-8", errors="backslashreplace")
    return piece.replace(SPACE, " ")


def token_kind(piece: str) -> TokenKind:
    """Whether a token is a delimiter: only white space, or only sentence and clause punctuation.

    Sun et al. 2024 find massive activations at the first "." or newline. Here `. , ; : ! ?`, the
    ellipsis and their full-width forms count, with or without white space around them; brackets,
    quotes and words do not.

    Args:
      piece: the token as `Tokenizer.token_strings` gives it.
    """
    is_delimiter = piece != "" and all(c in _DELIMITERS for c in piece.strip())
    return "delimiter" if is_delimiter else "other"
