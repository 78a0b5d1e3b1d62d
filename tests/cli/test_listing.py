"""`massact list` shows the tables that the rest of the package uses; a shell completes options."""

import subprocess
from pathlib import Path

import pytest

from jax_massact.cli import main
from jax_massact.cli.listing import SOURCES, TABLES, TOKENIZERS
from jax_massact.cli.settings import load_file
from jax_massact.cli.table import COMMANDS
from jax_massact.data.corpus import open_corpus
from jax_massact.data.text import documents
from jax_massact.data.vocabulary import open_vocabulary
from jax_massact.families.table import FAMILIES
from jax_massact.nn.variants import VARIANTS
from jax_massact.resources import RESOURCES

ROOT = Path(__file__).parents[2]


def test_everything_is_listed(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in (*(f.model_type for f in FAMILIES), *VARIANTS, "siglip", *RESOURCES, *SOURCES,
                 *TOKENIZERS, *(path.name for path in (ROOT / "configs").glob("*.py"))):
        assert name in out
    assert main(["list", "variants", "tokenizers"]) == 0
    out = capsys.readouterr().out
    assert "kv_bias" in out and "bpe:SIZE" in out and "smollm2" not in out


def test_a_list_that_does_not_exist(capsys):
    assert main(["list", "nothing"]) == 2
    err = capsys.readouterr().err
    assert err == (
        "massact: there is no list of 'nothing'; expected: one or more of formats, families, "
        "encoders, variants, resources, sources, tokenizers, configs\n"
    )
    assert main(["list", "--config.x=1"]) == 2
    assert capsys.readouterr().err == (
        "massact: there is no option --config.x. massact list --help lists all\n"
    )


def test_listed_configurations_can_be_named_as_they_are_listed():
    rows = TABLES["configs"].rows()
    assert len(rows) == len([*(ROOT / "configs").glob("*.py")])
    for name, _, about in rows:
        load_file(name if "probe" in name else f"{name}:standard")
        assert about.endswith(".") and len(about) > 20


@pytest.mark.parametrize("source", ["help-3.11", "pydoc", "text:one two three"])
def test_listed_sources_are_read(source):
    assert any(source.startswith(name.removesuffix("...")) for name in SOURCES)
    assert next(iter(documents(source).texts))


@pytest.mark.parametrize("name", ["bytes", "chars", "bpe:300", "ids:300"])
def test_listed_tokenizers_are_opened(name):
    assert name.replace("300", "SIZE") in TOKENIZERS
    corpus = None if name.startswith("ids") else open_corpus("text:one two", [], lambda line: None)
    assert open_vocabulary(name, corpus, None, lambda line: None).size > 0


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_of_a_shell_knows_commands_options_and_settings(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = tmp_path / "massact.sh"
    script.write_text(capsys.readouterr().out)
    for word in (*(name.split()[-1] for name in COMMANDS), "--workdir", "--print-config",
                 "--config.definition.strict.magnitude", "--config.optimizer.lr"):
        assert word in script.read_text()
    if shell == "bash":
        ask = (f"source {script}; COMP_WORDS=(massact probe --config.def); COMP_CWORD=2; "
               "_shtab_massact; echo ${COMPREPLY[@]}")
        found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert "--config.definition.min_share" in found.stdout.split()
        assert "--config.top_k" not in found.stdout
