"""Training data: batches of token ids as a function of (seed, step)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jax_massact.cache import Report
from jax_massact.data.bigram import BigramBackcopy, Drawn
from jax_massact.data.corpus import open_corpus
from jax_massact.data.files import (
    called,
    find_files,
    is_shard,
    listed,
    splits_of,
)
from jax_massact.data.packed import Packed, Windows, split
from jax_massact.data.shards import open_shards
from jax_massact.data.text import HELP
from jax_massact.data.token_cache import encoded
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.data.vocabulary import Vocabulary, open_vocabulary
from jax_massact.settings import check_float, check_in, check_int

BIGRAM_BACKCOPY = "bigram-backcopy"
HELD_OUT = 0.1  # the share of a source, from its end, that only validation sees
_VALIDATION_SEED = 0  # the same for every run, so that losses can be compared

Examples = Callable[[int, int], Int[np.ndarray, "N T+1"]]
"""`examples(lo, hi)`: the examples number lo to hi - 1 of an endless sequence."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """Batches for training and validation.

    Training examples form one endless sequence that depends on the source, the tokenizer, the
    sequence length and the seed; the batch of step s holds those numbered s x B to (s + 1) x B - 1.
    So any restart, any mesh and any number of hosts sees the same data, and only the step needs to
    be saved.

    Of a row, `[:-1]` are inputs and `[1:]` their targets.

    Attributes:
      training, held_out: the two sequences of examples.
      batch_size: rows of a training batch (B), over all hosts.
      sequence_length: predicted tokens in a row (T).
      vocab_size: every id is below this.
      first_token: what every row begins with, or None if rows begin where they fall.
      end_of_text: the id that stands after every document.
      description: the source, the tokenizer, and the split, in a line.
      digests: of the content of `training data`, `validation data` and `tokenizer`: a run that
        resumes on other digests sees other numbers. They depend on neither paths nor caches.
      tokenizer: for the trained model: it puts `first_token` in front. None where the source holds
        ids without a known tokenizer.
    """

    training: Examples
    held_out: Examples
    batch_size: int
    sequence_length: int
    vocab_size: int
    first_token: int | None
    end_of_text: int
    description: str
    digests: Mapping[str, str]
    tokenizer: Tokenizer | None

    def batch(self, step: int) -> Int[np.ndarray, "B T+1"]:
        """The batch of a step, from 0; int32."""
        return self.rows(step, 0, self.batch_size)

    def rows(self, step: int, lo: int, hi: int) -> Int[np.ndarray, "hi-lo T+1"]:
        """Rows lo to hi - 1 of the batch of a step: one host's share of it.

        Raises:
          ValueError: there are no such rows.
        """
        if not 0 <= lo <= hi <= self.batch_size or step < 0:
            raise ValueError(f"no rows {lo} to {hi} of batch {step}; it has {self.batch_size}")
        first = step * self.batch_size
        return self.training(first + lo, first + hi)

    def validation(self, index: int, batch_size: int | None = None) -> Int[np.ndarray, "B T+1"]:
        """Batch `index`, from 0, of the held-out data: the same for every seed.

        Wraps around at the end of the held-out data. `batch_size`: None for that of training.
        """
        size = self.batch_size if batch_size is None else batch_size
        return self.held_out(index * size, (index + 1) * size)


def open_stream(
    source: str,
    *,
    tokenizer: str | Tokenizer = "bytes",
    seed: int,
    batch_size: int,
    sequence_length: int,
    same_first_token: bool = False,
    cache: Path | None = None,
    validation_share: float = HELD_OUT,
    text_field: str = "text",
    special_tokens_as_text: bool = False,
    report: Report | None = None,
) -> Stream:
    """Opens the data of a training run.

    `source` is one of

    - text: `help-3.11`, `pydoc`, `shakespeare` (38 plays, a named resource), `tfds:NAME[:SPLIT]`,
      a text file or JSON lines (`.jsonl`, `.json`; either may be packed as `.xz`, `.gz` or `.bz2`),
      a folder or a glob of such files, or `text:` and the text itself. Lines that read
      `<|endoftext|>` separate the documents of a text file;
    - ids: a `.bin` (nanoGPT's or llm.c's layout) or `.npy` file, a folder or a glob of such;
    - `bigram-backcopy[:SOURCE]`, the synthetic task of `data.bigram` with the statistics of one of
      the sources above (`help-3.11` unless given); tokenizer `chars` makes it that of its paper.
      Every row begins with the same token, and validation draws from the same statistics.

    Text is tokenized once and packed: documents one after the other, the end-of-text token after
    each. It is then cut into windows as `data.packed.Windows` describes.

    Held out are the files called `val`, `valid`, `validation`, `dev` or `eval` (as in `val.bin`,
    `fineweb_val_000.bin` or `valid/0.txt`); if there are none, the last `validation_share` of the
    tokens of every file. Files called `test` are left out. Names count only beside files for
    training: a single file is just data. No token is in both parts, and no window reaches from one
    into the other.

    Args:
      tokenizer: `bytes`, `chars`, `gpt2`, `bpe:SIZE`, `ids:SIZE`, the path of a `tokenizer.json` or
        of a folder with one, or a tokenizer (see `data.vocabulary.open_vocabulary`).
      seed: of the order of the examples.
      batch_size: rows of a batch (B), over all hosts.
      sequence_length: predicted tokens in a row (T).
      same_first_token: every row begins with the tokenizer's BOS, or its end of text where it has
        no BOS, in place of the token that stood there.
      cache: folder for tokenized text, which is then memory-mapped, and for trained tokenizers,
        such as one in `cache.cache_folder()`; None: nothing is written and tokens are kept in
        memory.
      text_field: the field of JSON lines, or the feature of a data set, that holds the text.
      special_tokens_as_text: special tokens that are written out in the text are tokenized like
        any other text; if not, they count as themselves.
      report: called with a line of text before anything that takes time, and with the
        description of the stream.

    Raises:
      ConfigError: a number is out of range, or there is no such tokenizer.
      DataError: the source cannot be read, does not fit the tokenizer, or is too short.
      ResourceError: a named resource could not be fetched.
    """
    check_int("seed", seed, 0, 2**63 - 1)
    check_int("batch_size", batch_size, 1)
    check_int("sequence_length", sequence_length, 1)
    check_in("same_first_token", same_first_token, (True, False))
    check_in("special_tokens_as_text", special_tokens_as_text, (True, False))
    check_float("validation_share", validation_share, 0.0, 0.5, open_low=True)
    kind, _, text = source.partition(":")
    say = report or (lambda line: None)
    read_from = functools.partial(
        _read_tokens, tokenizer=tokenizer, cache=cache, say=say, text_field=text_field,
        special_tokens_as_text=special_tokens_as_text,
    )
    if kind == BIGRAM_BACKCOPY:
        read = read_from(text or HELP)
        first = read.vocabulary.first
        parts = _task(read, seed, sequence_length)
    else:
        read = read_from(source)
        first = read.vocabulary.first if same_first_token else None
        parts = _windows(read, seed, sequence_length, first, validation_share)
    say(parts.description)
    for part, examples in (("training", parts.training), ("validation", parts.held_out)):
        if isinstance(examples, Windows) and examples.count < batch_size:
            say(f"{part} has {examples.count} windows of {sequence_length} tokens, fewer than a "
                f"batch of {batch_size}: rows of a batch repeat")
    return Stream(
        training=parts.training,
        held_out=parts.held_out,
        batch_size=batch_size,
        sequence_length=sequence_length,
        vocab_size=read.vocabulary.size,
        first_token=first,
        end_of_text=read.vocabulary.end_of_text,
        description=parts.description,
        digests={**parts.digests, "tokenizer": read.vocabulary.digest()},
        tokenizer=_in_front(read.vocabulary, first),
    )


class _Parts(NamedTuple):
    training: Examples
    held_out: Examples
    digests: dict[str, str]
    description: str


def _task(read: "_Read", seed: int, length: int) -> _Parts:
    task = BigramBackcopy.of(read.tokens, read.vocabulary, read.name)
    return _Parts(
        Drawn(task, length, (seed, 0)),
        Drawn(task, length, (_VALIDATION_SEED, 1)),
        dict.fromkeys(("training data", "validation data"), read.tokens.digest()),
        f"Bigram-Backcopy with the statistics of {read.name}, {read.vocabulary.name}",
    )


def _windows(read: "_Read", seed: int, length: int, first: int | None, share: float) -> _Parts:
    size = read.vocabulary.size
    training, held_out, how = split(read.tokens, read.held_out, share)
    return _Parts(
        Windows(
            training, f"{read.name}, for training",
            seed=seed, length=length, first_token=first, vocab_size=size,
        ),
        Windows(
            held_out, f"{read.name}, for validation",
            seed=_VALIDATION_SEED, length=length, first_token=first, vocab_size=size, shift=False,
        ),
        {"training data": training.digest(), "validation data": held_out.digest()},
        f"{read.name}, {read.vocabulary.name}: {len(training):,} tokens for training, "
        f"{len(held_out):,} for validation ({read.named or how})",
    )


def _in_front(vocabulary: Vocabulary, first: int | None) -> Tokenizer | None:
    tokenizer = vocabulary.tokenizer
    return tokenizer if tokenizer is None or first is None else tokenizer.with_bos(first)


@dataclasses.dataclass(frozen=True, slots=True)
class _Read:
    """The tokens of a source, one array for each of its files.

    Attributes:
      held_out: for each file, whether it is for validation.
      named: the files that their names set apart, in words.
    """

    name: str
    tokens: Packed
    held_out: list[bool]
    vocabulary: Vocabulary
    named: str = ""


def _read_tokens(
    source: str,
    *,
    tokenizer: str | Tokenizer,
    cache: Path | None,
    say: Report,
    text_field: str,
    special_tokens_as_text: bool,
) -> _Read:
    found = find_files(source)
    splits = splits_of(found)
    by_split = {split: [path for path, of in zip(found, splits, strict=True) if of == split]
                for split in ("validation", "test")}
    files = [path for path, of in zip(found, splits, strict=True) if of != "test"]
    held_out = [of == "validation" for of in splits if of != "test"]
    ways = {"validation": "{}", "test": "{} left out"}
    named = "; ".join(ways[split].format(listed(of)) for split, of in by_split.items() if of)
    if files and is_shard(files[0]):
        vocabulary = open_vocabulary(tokenizer, None, cache, say)
        shards = open_shards(files, vocabulary.size)
        return _Read(called(source, files), shards, held_out, vocabulary, named)
    corpus = open_corpus(source, files, say, held_out=held_out, text_field=text_field)
    vocabulary = open_vocabulary(tokenizer, corpus, cache, say)
    reader = vocabulary
    if special_tokens_as_text and vocabulary.tokenizer is not None:
        plain = vocabulary.tokenizer.with_special_tokens_as_text()
        reader = dataclasses.replace(vocabulary, tokenizer=plain)
    tokens = encoded(corpus, reader, cache, say)
    held_out = [part.held_out for part in corpus.parts]
    return _Read(corpus.name, tokens, held_out, vocabulary, named)
