"""`massact probe` on a Hugging Face folder: the whole result, and what cannot be run."""

import json
import os

import pytest
from cli_folders import SMOLLM2, make_folder

from jax_massact.cli import main
from jax_massact.results import LayerStats
from jax_massact.studies.probe.result import ProbeResult

GGUF = SMOLLM2.parent / "gguf" / "smollm2.gguf"
SMALL = ["--config.sequences=3", "--config.sequence_length=12", "--config.batch_size=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = main([*map(str, argv)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(run, tmp_path):
    def refused(*argv):
        before = {*tmp_path.rglob("*")}
        code, out, err = run("probe", *argv)
        assert code == 2 and out == ""
        assert err.startswith("massact: ") and "Traceback" not in err
        assert err.count("\n") == 1 and err.endswith("\n")
        assert {*tmp_path.rglob("*")} == before  # no empty folder either
        return err

    return refused


def test_probe_writes_a_whole_result(run, folder, tmp_path):
    out_folder = tmp_path / "out"
    code, out, err = run("probe", folder, *SMALL, f"--workdir={out_folder}", "--config.top_k=2")
    assert code == 0
    result = json.loads((out_folder / "probe.json").read_text())
    assert result.keys() == ProbeResult.__required_keys__
    assert result["model"] | {"depth": 0} == result["model"] | {
        "name": "tiny", "family": "llama", "vocab_size": 97, "dtype": "float32", "depth": 0,
    }
    config = json.loads((folder / "config.json").read_text())
    assert result["model"]["depth"] == len(result["layers"]) == config["num_hidden_layers"]
    assert result["model"]["width"] == config["hidden_size"]
    assert result["data"] | {"source": ""} == {
        "source": "", "sequences": 3, "sequence_length": 12, "bos": False, "bos_setting": "auto",
        "bos_token": "<s>",
    }
    for layer in result["layers"]:
        assert layer.keys() == LayerStats.__annotations__.keys() and len(layer["top"]) == 2
    assert result["config"]["top_k"] == 2 and result["config"]["sequences"] == 3
    assert len(result["prompt"]["tokens"]) == 12
    assert all(seconds >= 0 for seconds in result["seconds"].values())
    # The table on stdout, what happens on stderr.
    assert "layer" in out.lower() and len(out.splitlines()) > len(result["layers"])
    # Lines are broken to the width of the terminal.
    err = "".join(err.split())
    for part in ("3x12tokens", "withoutBOS(bos=auto:", "ran3of3sequences", "probe.json"):
        assert part in err
    assert (out_folder / "report.html").stat().st_size > 10_000
    assert [*(out_folder / "figures").glob("*.png")]
    assert not (out_folder / ".writable").exists()


def test_the_folder_is_named_after_the_model(run, undrawn, tmp_path):
    code, _, _ = run("probe", GGUF, *SMALL, "--config.dtype=bfloat16")
    assert code == 0
    result = json.loads((tmp_path / "massact_out" / "smollm2.gguf" / "probe.json").read_text())
    assert result["model"]["dtype"] == "bfloat16" and result["model"]["source"] == "smollm2.gguf"


@pytest.mark.parametrize(("argv", "parts"), [
    (["./nothing.gguf"], ["nothing.gguf does not exist"]),
    (["./nothing.gguf", "--workdir=new/out"], ["nothing.gguf does not exist"]),
    (["MODEL", "--config.sequence_length=65"], ["sequence_length is 65; expected for this model: "
                                                "at most 64"]),
    (["MODEL", "--config.sequence_length=1", "--config.bos=true"], ["sequence_length is 1",
                                                                    "at least 2"]),
    (["MODEL", "--config.text=no/file", *SMALL], ["there is no text file 'no/file', nor its folder",
                                                  "text:..."]),
    (["MODEL", "--config.text=text: ", *SMALL], ["the text holds only white space"]),
    (["MODEL", "--config.text=.", *SMALL], ["text source . is a folder"]),
    (["MODEL", "--workdir=/proc/none/out"], ["cannot write to /proc/none/out: "]),
    (["MODEL", "--confg.top_k=3"], ["there is no option --confg.top_k"]),
])
def test_errors_are_one_line(argv, parts, refused, folder):
    message = refused(*(str(folder) if a == "MODEL" else a for a in argv))
    for part in parts:
        assert part in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(refused, folder, tmp_path):
    (tmp_path / "parent").mkdir(mode=0o555)
    message = refused(folder, "--workdir=parent/out")
    assert "cannot write to parent/out: Permission denied" in message


def test_configuration_files_and_a_bos(refused, run, undrawn, folder, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import ml_collections\n"
        "def get_config(n):\n    return ml_collections.ConfigDict({'topk': int(n)})\n"
    )
    message = refused(folder, "--config=mine.py:4")
    assert "no setting config.topk." in message and "Did you mean top_k?" in message
    file.write_text(file.read_text().replace("topk", "top_k"))
    code, _, err = run("probe", folder, "--config=mine.py:4", *SMALL, "--workdir=out",
                       "--config.bos=True", "--config.text=text:A text of 12 letters or more")
    assert code == 0 and "withBOS<s>(bos=true" in "".join(err.split())
    result = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert result["config"]["top_k"] == len(result["layers"][0]["top"]) == 4
    # BOS is honoured, and stored.
    assert result["data"]["bos"] is True and result["data"]["bos_setting"] == "true"
    assert result["config"]["bos"] == "true"
    assert result["prompt"]["tokens"] == ["<s>", *"A text of 1"]


def test_a_tokenizer_of_another_model(refused, tmp_path):
    folder = make_folder(tmp_path / "wide", vocabulary=97 + 60)
    message = refused(folder, "--config.text=text:so © on and on", *SMALL)
    assert "embeddings for 97 ids: they do not belong together" in message


def test_usage(capsys):
    for argv, code, stream in (([], 2, 1), (["--help"], 0, 0), (["probe"], 2, 1)):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == code
        said = capsys.readouterr()[stream]
        assert "usage: massact" in said
        # Without a command, all there are, and one to begin with.
        assert ("To begin: massact probe smollm2-135m" in " ".join(said.split())) is (
            argv != ["probe"]
        )


def test_interrupts_leave_no_traceback(monkeypatch, folder, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("jax_massact.studies.frame.run_study", stop)
    assert main(["probe", str(folder)]) == 130
    assert capsys.readouterr().err == "massact: stopped\n"
