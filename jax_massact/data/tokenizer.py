"""Tokenizers: text to token ids, and ids to pieces that can be read."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import numpy as np
import tokenizers
from tokenizers import AddedToken, processors

from jax_massact.data.unicode import check_unicode
from jax_massact.errors import DataError
from jax_massact.settings import check_in

BOS_SETTINGS = ("auto", "true", "false")
END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A tokenizer, and all that is known about the token in front.

    BOS is never added silently: `encode` puts it in front when told to, and `adds_bos` says whether
    the model's own tokenizer does so.

    Attributes:
      source: the file it came from, for messages.
      vocab_size: number of ids; every id that `encode` gives is smaller.
      bos_id, bos_token: the token that begins a sequence, or None where the model has none.
      eos_id: the token that ends a sequence, or None.
      adds_bos: whether the model was published for sequences with BOS in front.
      notes: contradictions and gaps in its files, in words.
      FILES: the names of `files`.
    """

    FILES: ClassVar[tuple[str, str]] = ("tokenizer.json", "tokenizer_config.json")

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        source: str,
        vocab_size: int,
        bos_id: int | None,
        eos_id: int | None,
        adds_bos: bool,
        raw_piece: Callable[[int], str | None],
        readable: Callable[[str], str],
        verbatim: Iterable[int] = (),
        bos_stated_in: str = "",
        adds_bos_because: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        """Wraps a tokenizer that is built already, by `read_tokenizer` or `gguf_tokenizer`.

        Args:
          backend: the tokenizer itself; its post-processor is never run.
          source: the file it came from, for messages.
          vocab_size: number of ids.
          bos_id: id of the token that begins a sequence.
          eos_id: id of the token that ends one.
          adds_bos: whether the model's own tokenizer puts BOS in front.
          raw_piece: id -> the piece as the vocabulary spells it, or None.
          readable: that spelling -> text.
          verbatim: ids whose spelling is text already (added and special tokens).
          bos_stated_in: the file or key that states `bos_id`.
          adds_bos_because: the reason for `adds_bos`, in words.
          notes: contradictions and gaps in its files, in words.
        """
        # A tokenizer.json may carry the truncation and padding of its authors' last call.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._raw_piece = raw_piece
        self._readable = readable
        self._verbatim = frozenset(verbatim)
        self.source = source
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.adds_bos = adds_bos and bos_id is not None
        self.notes = tuple(notes)
        self._bos_stated_in = bos_stated_in
        self._adds_bos_because = adds_bos_because

    @property
    def bos_token(self) -> str | None:
        return None if self.bos_id is None else self._raw_piece(self.bos_id)

    def files(self) -> dict[str, str]:
        """Names and contents of the files that `read_tokenizer` and transformers read as this one.

        BOS and EOS stay what they are, and so does whether BOS is put in front.

        Raises:
          DataError: BOS or EOS is spelled as another token is, which only GGUF files can express.
        """
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        in_front = put_in_front(backend)
        if in_front != (self.bos_id if self.adds_bos else None):
            kept = [backend.post_processor] if backend.post_processor and in_front is None else []
            bos = [self._bos_in_front()] if self.adds_bos else []
            backend.post_processor = processors.Sequence([*kept, *bos])
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self._spelled(self.bos_id),
            "eos_token": self._spelled(self.eos_id),
            "add_bos_token": self.adds_bos,
            "clean_up_tokenization_spaces": False,
        }
        texts = (backend.to_str(pretty=True), json.dumps(config, indent=2, ensure_ascii=False))
        return dict(zip(self.FILES, texts, strict=True))

    def encode(self, text: str, *, bos: bool) -> np.ndarray:
        """Token ids of a text, int32 [T]; special tokens written out in it count as themselves.

        Raises:
          DataError: `bos` is asked for and there is none, or the text is not valid Unicode.
        """
        if bos:
            self._require_bos()
        check_unicode(text, "the text")
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return np.array([self.bos_id, *ids] if bos else ids, dtype=np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of texts, without BOS, int32 [T] each; on all processors at once.

        Raises:
          DataError: a text is not valid Unicode.
        """
        for text in texts:
            check_unicode(text, "the text")
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def digest(self) -> str:
        """A digest of everything that decides the ids of a text."""
        settings = f"{self._backend.encode_special_tokens} {self._backend.to_str()}"
        return hashlib.sha256(settings.encode()).hexdigest()

    def pieces(self) -> list[tuple[int, str]]:
        """Every id of the vocabulary and its spelling, in order."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return sorted((i, piece) for piece, i in vocabulary.items())

    def with_end_of_text(self) -> "Tokenizer":
        """This tokenizer, if it has a BOS or an EOS; else a copy whose EOS is `<|endoftext|>`.

        If that is not in the vocabulary it is added, under a new id.
        """
        if self.bos_id is not None or self.eos_id is not None:
            return self
        out = copy.copy(self)
        out._backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        out._backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
        out.eos_id = i = out._backend.get_vocab(with_added_tokens=True)[END_OF_TEXT]
        out._raw_piece = lambda j: END_OF_TEXT if j == i else self._raw_piece(j)
        out._verbatim = self._verbatim | {i}
        out.vocab_size = max(self.vocab_size, i + 1)
        return out

    def with_special_tokens_as_text(self) -> "Tokenizer":
        """A copy that tokenizes special tokens that are written out in a text like other text."""
        out = copy.copy(self)
        out._backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        out._backend.encode_special_tokens = True
        return out

    def with_bos(self, bos_id: int) -> "Tokenizer":
        """A copy for a model that was trained with this id in front of every sequence."""
        out = copy.copy(self)
        out.bos_id, out.adds_bos = bos_id, True
        return out

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        r"""The text of each id: ' the' rather than 'Ġthe', and `\xNN` for part of a character.

        An id that the vocabulary does not use, as in a padded embedding table, reads `<id 50300>`.
        """
        return [self._token_string(int(i)) for i in ids]

    def resolve_bos(self, setting: str) -> bool:
        """Whether sequences begin with BOS, given the setting `auto`, `true` or `false`.

        Raises:
          ConfigError: it is none of the three.
          DataError: it is `true` and the tokenizer has no BOS token.
        """
        check_in("bos", setting, BOS_SETTINGS)
        if setting == "true":
            self._require_bos()
        return setting == "true" or (setting == "auto" and self.adds_bos)

    def bos_words(self, setting: str, bos: bool) -> str:
        """Whether BOS is in front and why, in words, for a `setting` that was resolved to `bos`."""
        why = f"bos={setting}"
        if self.bos_id is None:
            why += ": its tokenizer has none"
        elif setting == "auto" and bos == self.adds_bos and self._adds_bos_because:
            why += f": {self._adds_bos_because}"
        if not bos:
            return f"without BOS ({why})"
        if setting == "true" and self._bos_stated_in:
            why += f"; {self._bos_stated_in} states the token"
        return f"with BOS {self.bos_token} ({why})"

    def second_bos(self, ids: np.ndarray) -> str | None:
        """A warning, in words, where BOS stands twice at the beginning of sequences, ids [S, T]."""
        if self.bos_id is None or ids.shape[1] < 2:
            return None
        twice = int((ids[:, :2] == self.bos_id).all(axis=1).sum())
        if not twice:
            return None
        return (
            f"{twice} of {len(ids)} sequences begin with {self.bos_token} twice: the text begins "
            "with it and BOS is put in front of it (bos=false leaves that out)"
        )

    def _spelled(self, i: int | None) -> str | None:
        """The spelling of a special token, if no other token has the same."""
        if i is None:
            return None
        piece = self._raw_piece(i)
        found = None if piece is None else self._backend.token_to_id(piece)
        if found != i:
            raise DataError(
                f"{self.source}: token {i} is spelled {piece!r}, as token {found} is; expected: "
                "a spelling of its own"
            )
        return piece

    def _bos_in_front(self) -> processors.TemplateProcessing:
        bos = {"id": "BOS", "ids": [self.bos_id], "tokens": [self.bos_token]}
        return processors.TemplateProcessing(
            single=["BOS", "$A"], pair=["BOS", "$A", "BOS:1", "$B:1"], special_tokens=[bos]
        )

    def _require_bos(self) -> None:
        if self.bos_id is None:
            raise DataError(f"{self.source}: BOS was asked for, and its tokenizer has none")

    def _token_string(self, i: int) -> str:
        piece = self._raw_piece(i)
        if piece is None:
            return f"<id {i}>"
        return piece if i in self._verbatim else self._readable(piece)


def put_in_front(backend: tokenizers.Tokenizer) -> int | None:
    """The id that the post-processor puts before a text; None: it puts none there."""
    plain = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    starts_alike = whole[: len(plain)] == plain
    return None if starts_alike or not whole else whole[0]
