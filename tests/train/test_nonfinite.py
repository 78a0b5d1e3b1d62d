"""Numbers that are no longer finite: where they begin is said, and the model before them stays."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import varied
from train_runs import MICRO, Counting

from jax_massact.errors import UserError
from jax_massact.nn.transformer import from_parameters
from jax_massact.train import loop, nonfinite
from jax_massact.train.config import MeshConfig
from jax_massact.train.loop import train
from jax_massact.train.metrics import of_kind, read_rows
from jax_massact.train.nonfinite import diagnose
from jax_massact.train.report import in_words
from jax_massact.train.step import (
    compile_update,
    loss,
    make_mesh,
    new_state,
    place,
)

# Not tied: a token whose embedding is NaN is harmless until it comes.
UNTIED = dataclasses.replace(
    MICRO, model=varied(MICRO.model, tied=False), validate_every=0, steps=10,
    watch=dataclasses.replace(MICRO.watch, every=0), accumulate=2,
)
BAD = 63
STEP, ROW, TOKEN = 7, 5, 4


@dataclasses.dataclass(frozen=True)
class Poisoned(Counting):
    """Token BAD at one place of these steps."""

    steps: tuple[int, ...] = (STEP,)

    def batch(self, step):
        rows = super().batch(step) % BAD
        if step in self.steps:
            rows[ROW, TOKEN] = BAD
        return rows

    def validation(self, index):
        return super().validation(index) % BAD


def poisoned(config, mesh):
    state = new_state(config, mesh)
    embed = np.array(state.params["embed"])
    embed[BAD] = np.nan
    embed = jax.device_put(embed, state.params["embed"].sharding)
    return state._replace(model=from_parameters(config.model, state.params | {"embed": embed}))


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr(loop, "new_state", poisoned)


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2, model=2)])
def test_the_run_stops_and_says_where(planted, tmp_path, mesh):
    said = (
        rf"the loss is nan and the gradient's norm nan at step {STEP}: the parameters embed "
        r"already hold numbers that are not finite; the first activation that is not finite is "
        rf"resid_pre of layer 0 \(from 0\), in row {ROW} of the batch, from token {TOKEN}; "
        "the checkpoint of step 5 stays"
    )
    with pytest.raises(UserError, match=said):
        train(dataclasses.replace(UNTIED, mesh=mesh), Poisoned(), tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEP + 1))
    if mesh == MeshConfig():
        # The same again from the checkpoint; with another batch in its place it goes on.
        with pytest.raises(UserError, match=f"at step {STEP}: "):
            train(UNTIED, Poisoned(), tmp_path)


def test_skipping_counts_and_goes_on(planted, tmp_path, monkeypatch):
    config = dataclasses.replace(UNTIED, on_nonfinite="skip", max_skipped=2)
    monkeypatch.setattr(loop, "export", lambda *args: None)  # which refuses NaN
    trained = train(config, Poisoned(steps=(3, 4, 7)), tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    skipped = of_kind(rows, "skipped")
    assert [(row["step"], row["in_a_row"]) for row in skipped] == [(4, 1), (5, 2), (8, 1)]
    assert trained.summary is not None and trained.summary["skipped"] == 3
    assert "\n3 updates skipped, whose loss or gradient" in in_words(trained.summary)
    assert all(np.isfinite(x).all() for name, x in trained.state.params.items() if name != "embed")
    finite = [row["step"] for row in of_kind(rows, "train") if row["loss"] is not None]
    assert finite == [1, 2, 3, 6, 7, 9, 10]


def test_too_many_in_a_row(planted, tmp_path):
    config = dataclasses.replace(UNTIED, on_nonfinite="skip", max_skipped=1)
    with pytest.raises(UserError, match=r"step 4, and 2 updates in a row .* \(max_skipped is 1\)"):
        train(config, Poisoned(steps=(3, 4)), tmp_path)


@pytest.mark.parametrize("kind", ["stop", "skip"])
def test_an_update_that_is_not_finite_changes_nothing(kind):
    config = dataclasses.replace(UNTIED, on_nonfinite=kind)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        update = compile_update(config, mesh)
        data, state = Poisoned(steps=(1,)), poisoned(config, mesh)
        put = lambda step: place(data.batch(step), config.accumulate, mesh)
        state, _ = update(state, put(0))
        before = jax.device_get(state)
        state, metrics = update(state, put(1))
        assert not np.isfinite(metrics.loss)
        after = jax.device_get(state)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
            if a.ndim:
                np.testing.assert_array_equal(a, b)
        state, metrics = update(state, put(2))
        assert np.isfinite(metrics.loss)
        moved = not np.array_equal(state.params["positions"], after.params["positions"])
        # A halted state stays as it is, for the updates that are already on their way.
        assert (int(after.step), int(state.step), bool(state.halted), moved) == (
            (1, 1, True, False) if kind == "stop" else (2, 3, False, True)
        )


@pytest.mark.parametrize(("name", "layer", "said"), [
    ("blocks.attn.v", 1, r"v of layer 1 \(from 0\), in rows 0, 1, 2, 3, 4 and 3 more of the batch, "
                         "from token 0"),
    ("blocks.mlp.down", 0, r"mlp_out of layer 0 \(from 0\)"),
    ("head", None, "all activations are finite, the logits are not, in rows 0"),
])
def test_where_numbers_become_too_large(name, layer, said):
    """Weights that are finite, and what comes of them is not."""
    mesh = make_mesh(UNTIED.mesh)
    with jax.set_mesh(mesh):
        params = new_state(UNTIED, mesh).params
        huge = np.array(params[name])
        huge[slice(None) if layer is None else layer] = 3e38
        params[name] = jax.device_put(huge, params[name].sharding)
        tokens = place(Counting().batch(0), UNTIED.accumulate, mesh)
        found = diagnose(from_parameters(UNTIED.model, params), tokens, UNTIED)
        assert re.search(said, found) and "already" not in found, found


def test_a_gradient_that_is_not_finite_where_all_else_is(monkeypatch):
    def steep(model, tokens, config):
        """The loss, and where token BAD is a zero whose slope is too large for float32."""
        x = model.positions[...]
        zero = 1e30 * (x - jax.lax.stop_gradient(x)).sum()
        return loss(model, tokens, config) + jnp.where((tokens == BAD).any(), 1e30, 0.0) * zero

    monkeypatch.setattr(nonfinite, "loss", steep)
    config = dataclasses.replace(UNTIED, seed=7)  # nothing else is compiled for it
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        tokens = place(Poisoned().batch(STEP), config.accumulate, mesh)
        found = diagnose(new_state(config, mesh).model, tokens, config)
    assert found == (
        "all activations and logits are finite; the gradient is not, of positions, in rows 4 to 7 "
        "of the batch"
    )


def test_what_is_finite_is_said_to_be():
    mesh = make_mesh(UNTIED.mesh)
    with jax.set_mesh(mesh):
        model = new_state(UNTIED, mesh).model
        tokens = place(Counting().batch(0), UNTIED.accumulate, mesh)
        assert diagnose(model, tokens, UNTIED).startswith("each activation, logit and gradient is")
