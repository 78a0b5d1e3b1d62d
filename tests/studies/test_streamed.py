"""Studies of a streamed model: the numbers of the loaded one, and how often blocks are read."""

import io
import json
import math

import numpy as np
import pytest
import rich.console
import safetensors.numpy
from model_folders import folder_of
from planted import DIM, WRITER, llama_written_and_removed

from jax_massact.cli import main
from jax_massact.errors import ConfigError
from jax_massact.families.open_model import OpenModel
from jax_massact.studies import fitting, frame
from jax_massact.studies.explain.run import run as explain
from jax_massact.studies.explain.settings import ExplainConfig
from jax_massact.studies.fitting import free_host_bytes, weights_bytes
from jax_massact.studies.fold.run import run as fold
from jax_massact.studies.fold.settings import FoldConfig
from jax_massact.studies.frame import prepare, progress_bar, run_study
from jax_massact.studies.interventions import intervene_checkpoint
from jax_massact.studies.medium import MediumConfig
from jax_massact.studies.probe.run import run as probe
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.studies.quantize.run import run as quantize
from jax_massact.studies.quantize.settings import QuantizeConfig
from jax_massact.studies.settings import InterveneConfig, RunConfig

TEXT = "text:abcdefgh ijklmnop qrstuvwx yz.,;:! " * 20
SIZE = dict(text=TEXT, bos="true", sequence_length=10, batch_size=2)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    plant = llama_written_and_removed().louder()
    return folder_of(plant.build(), tmp_path_factory.mktemp("models") / "planted")


@pytest.fixture
def reads(monkeypatch):
    """The blocks that were read, in order."""
    read, seen = OpenModel.read, []
    monkeypatch.setattr(OpenModel, "read", lambda self, l: seen.append(l) or read(self, l))
    return seen


def same(a, b, path=""):
    """Two results but for times and settings: numbers to 1e-5, all else equal."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - {"seconds", "config"}:
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            same(*pair, f"{path}[{i}]")
    elif isinstance(a, float):
        assert math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6) or a != a and b != b, (path, a, b)
    else:
        assert a == b, (path, a, b)


def both(run, folder, make, **settings):
    """Results of a study in memory and streamed, and what the stream said of its progress."""
    said, results = [], []
    for stream in ("false", "true"):
        config = make(**SIZE | settings, stream=stream)
        prepared = prepare(str(folder), config)
        assert bool(prepared.streamed) == (stream == "true")
        result = run(prepared, config, progress=lambda *counts: said.append(counts))
        results.append(result)
    return *results, [counts for counts in said if len(counts) == 3]


def test_probe(planted, reads):
    loaded, streamed, said = both(
        probe, planted, ProbeConfig, sequences=5, medium=MediumConfig(sequences=2, low=3.0)
    )
    same(loaded.result, streamed.result)
    assert streamed.result["massive"][0]["dim"] == DIM and streamed.result["super_weights"]
    assert streamed.result["medium"]["dims"] and streamed.result["medium"]["perplexity"]
    np.testing.assert_allclose(streamed.pictures[0].magnitude, loaded.pictures[0].magnitude,
                               rtol=1e-5)
    # The statistics, the first blocks for the super weights, four passes for the medium scale.
    assert reads[:6] == [*range(6)] and reads.count(5) < reads.count(0)
    assert said[0][:2] == (1, 6) and said[0][2].startswith("block 1 of 6, 0.00 of 0.00 GB read")


def test_intervene_reads_the_file_twice(planted, reads):
    loaded, streamed, _ = both(
        intervene_checkpoint, planted, InterveneConfig, sequences=3, calibration_sequences=2,
        layers="all",
    )
    same(loaded, streamed)
    assert loaded["perplexity"]["zero"] != pytest.approx(loaded["perplexity"]["original"], rel=1e-3)
    assert [t["layer"] for t in streamed["targets"]][0] == WRITER
    assert reads == [*range(6), *range(6)]


def test_nothing_to_intervene_on(planted, reads):
    config = InterveneConfig(
        **SIZE | dict(bos="false", sequences=3, calibration_sequences=2), stream="true"
    )
    streamed = intervene_checkpoint(prepare(str(planted), config), config)
    assert streamed["targets"] == [] and [*streamed["perplexity"]] == ["original"]


def test_explain_reads_the_file_twice(planted, reads):
    loaded, streamed, _ = both(
        explain, planted, ExplainConfig, sequences=3, location_sequences=3, location_length=8
    )
    same(loaded.result, streamed.result)
    assert len(streamed.result["locations"]) == 2 and streamed.result["massive_tokens"] == 1
    np.testing.assert_allclose(streamed.pictures[0].weight, loaded.pictures[0].weight, rtol=1e-4)
    assert reads == [*range(6), *range(6)]


def test_what_does_not_fit_is_streamed_and_it_is_said(
    planted, monkeypatch, capsys, undrawn, tmp_path
):
    config = RunConfig(**SIZE, sequences=2)
    checkpoint = prepare(str(planted), config).checkpoint
    # 6 blocks of 16 x (32 + 16 + 16) + 32 x 16 + 3 x 16 x 24 + 2 x 16, two of 64 x 16, one of 16.
    whole = 6 * (2 * 16 * 32 + 2 * 16 * 16 + 3 * 16 * 24 + 2 * 16) + 2 * 64 * 16 + 16
    largest = 64 * 16
    assert weights_bytes(checkpoint, "float32") == 4 * (whole + largest)
    needed = 4 * (whole + largest) + fitting.BESIDE
    monkeypatch.setattr(fitting, "free_host_bytes", lambda: needed)
    assert prepare(str(planted), config).streamed == ""
    monkeypatch.setattr(fitting, "free_host_bytes", lambda: needed - 1)
    why = prepare(str(planted), config).streamed
    assert why == (
        "the weights take 0.0 GB in float32 and this machine has 1.1 GB free (1.1 GB of them for "
        "all else): blocks are streamed from the file"
    )
    assert prepare(str(planted), RunConfig(**SIZE, sequences=2, stream=False)).streamed == ""
    monkeypatch.chdir(tmp_path)
    args = [f"--config.{name}={value}" for name, value in SIZE.items()]
    assert main(["probe", str(planted), *args, "--config.sequences=2", "--workdir=out"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert why in said and "block 6 of 6" in said and "s left" in said
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["config"]["stream"] == "auto"


def test_what_cannot_be_streamed_is_refused_only_where_it_was_asked_for(planted, tmp_path):
    with pytest.raises(ConfigError, match="stream is 'maybe'"):
        RunConfig(stream="maybe")
    fold = RunConfig(**SIZE, stream="true")
    prepared = prepare(str(planted), fold)
    with pytest.raises(ConfigError, match="stream is 'true', and x loads the model whole"):
        frame._streamed_or_loaded(prepared, fold, "x", streams=False)
    auto = RunConfig(**SIZE)
    assert frame._streamed_or_loaded(prepared, auto, "x", streams=False).streamed == ""


def test_the_system_says_how_much_memory_is_free(monkeypatch, tmp_path):
    found = free_host_bytes()
    assert found is not None and 10**8 < found < 10**14
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    monkeypatch.setattr(fitting, "_CGROUP", tmp_path)
    assert free_host_bytes() == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_host_bytes() > 10**8


def test_a_log_has_a_line_about_blocks_every_tenth_of_the_way():
    console = rich.console.Console(file=io.StringIO(), width=80)
    with progress_bar(console) as progress:
        for block in range(1, 41):
            progress(block, 40, f"block {block} of 40")
        progress(2, 2)
    lines = console.file.getvalue().splitlines()
    assert lines == [*(f"block {n} of 40" for n in range(4, 41, 4)), "ran 2 of 2 sequences"]


def test_ctrl_c_ends_it(planted, monkeypatch, tmp_path):
    def interrupted(self, layer):
        raise KeyboardInterrupt

    monkeypatch.setattr(OpenModel, "read", interrupted)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_study("probe", str(planted), ProbeConfig(**SIZE, stream="true"), "out")
    assert not (tmp_path / "out").exists()


def test_fold_reads_the_file_twice_and_saves_what_it_folds(planted, reads, tmp_path):
    run = lambda prepared, config, progress: fold(prepared, config, progress)
    loaded, streamed, _ = both(run, planted, FoldConfig, bos="false", sequences=3)
    same(loaded.result, streamed.result)
    assert streamed.result["unchanged"] and streamed.result["massive_before"][0]["dim"] == DIM
    assert reads == [*range(6), *range(6)]
    for name, outcome in (("loaded", loaded), ("streamed", streamed)):
        outcome.save(tmp_path / name)
    one, other = (safetensors.numpy.load_file(tmp_path / name / "model" / "model.safetensors")
                  for name in ("loaded", "streamed"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)
    config = FoldConfig(**SIZE | dict(bos="false"), stream="true", sequences=3,
                        medium=MediumConfig(sequences=1))
    with pytest.raises(ConfigError, match="medium.sequences is 1; expected of a model"):
        fold(prepare(str(planted), config), config)


def test_quantize_shares_passes(planted, reads):
    settings = dict(
        bos="auto", sequences=2, calibration_sequences=2, static_sequences=2,
        rows="linear:int8:tensor,linear:int8:static,mlp_hidden:fp8:token:int4", bits_sequences=1,
    )
    loaded, streamed, _ = both(quantize, planted, QuantizeConfig, **settings)
    same(loaded.result, streamed.result)
    assert {r["variant"] for r in streamed.result["rows"]} >= {"original", "folded", "kept"}
    assert len(streamed.result["rows"]) > 12 and streamed.result["bits"]
    # Statistics, k' and v', ranges, static ranges of each variant, all rows with all blocks alone,
    # the search.
    variants = len({r["variant"] for r in streamed.result["rows"]})
    assert 4 + variants < reads.count(5) <= 4 + variants + 4
    config = QuantizeConfig(**SIZE | dict(bos="auto"), stream="true", smooth=0.5)
    with pytest.raises(ConfigError, match="smooth is 0.5; expected of a model"):
        quantize(prepare(str(planted), config), config)
