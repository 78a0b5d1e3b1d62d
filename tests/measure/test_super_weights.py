"""Which entry of a down projection writes a dimension: planted, and of mixtures against NumPy."""

import collections
import functools
from types import SimpleNamespace

import in_numpy
import jax
import numpy as np
import pytest
from planted import BOS, DIM, REMOVER, WRITER, llama_written_and_removed
from tiny_models import SWITCHES, decoder, ids

from jax_massact.measure.super_weights import super_weights
from jax_massact.mesh import make_mesh
from jax_massact.nn.transformer import parameters
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.probe.super_weights import super_weight_records

LAYERS, DIMS = [2, 0, 2], [3, 7, 11]


def test_the_planted_weight_is_named():
    plant = llama_written_and_removed()
    model, tokens = plant.build(), np.array(ids(plant.config, 2, 9))
    tokens[:, 0], tokens[1, 4] = BOS + 1, BOS
    tokens[0, 0] = BOS
    found = in_numpy.jit(super_weights)(model, tokens, [WRITER, REMOVER], [DIM, DIM])
    np.testing.assert_array_equal(found.position, [[0, 0], [4, 4]])
    np.testing.assert_array_equal(found.column, [[5, 6], [5, 6]])
    np.testing.assert_array_equal(found.expert, [[-1, -1]] * 2)
    down = parameters(model)["blocks.mlp.down"]
    wanted = [down[WRITER, 5, DIM], down[REMOVER, 6, DIM]]
    np.testing.assert_array_equal(found.weight, [wanted, wanted])
    np.testing.assert_allclose(found.activation, 1600, rtol=0.1)
    np.testing.assert_allclose(found.share, 1, rtol=0, atol=1e-2)
    np.testing.assert_array_equal(found.expert_share, 1)


@functools.cache
def mixture(name):
    config = SWITCHES[name]
    model, tokens = decoder(config), np.array(ids(config, 2, 7))
    run = in_numpy.jit(lambda m, t: m(t, tap=lambda acts: acts._replace(mask=None))[1])
    acts = run(model, tokens)
    return model, tokens, acts


def plain(name, layer, dim, sequence):
    """(expert, column) -> what that unit writes, at the token where all together add the most."""
    model, _, acts = mixture(name)
    p = {n: np.float64(x) for n, x in parameters(model).items()}
    token = int(np.abs(acts.mlp_out[layer, sequence, :, dim]).argmax())
    hidden = np.float64(acts.mlp_hidden[layer, sequence, token])
    router = [np.asarray(x[layer, sequence, token]) for x in acts.router]
    F, written = model.config.block.mlp.hidden, {}
    for slot, (expert, weight) in enumerate(zip(*router, strict=True)):
        down = p["blocks.mlp.experts.down"][layer, expert, :, dim]
        for c in range(F):
            written[int(expert), c] = hidden[slot * F + c] * weight * down[c]
    for c in range(model.config.block.mlp.moe.shared):
        unit = hidden[len(router[0]) * F + c]
        written[-1, c] = unit * p["blocks.mlp.shared.down"][layer, c, dim]
    return token, written


def check(name, found):
    for sequence in range(2):
        for e, (layer, dim) in enumerate(zip(LAYERS, DIMS, strict=True)):
            token, written = plain(name, layer, dim, sequence)
            total = sum(written.values())
            shares = {place: x / total for place, x in written.items()}
            by_expert = collections.Counter()
            for (expert, _), x in shares.items():
                by_expert[expert] += x
            expert, most = by_expert.most_common(1)[0]
            place = max((p for p in shares if p[0] == expert), key=shares.__getitem__)
            values = [x[sequence, e] for x in found]
            assert [values[0], values[1], values[3]] == [token, *place]
            np.testing.assert_allclose(values[2], most, rtol=1e-3)
            np.testing.assert_allclose(values[6], shares[place], rtol=1e-3)


def test_the_writer_of_a_mixture_is_named_down_to_the_expert():
    model, tokens, _ = mixture("qwen2_moe")
    found = jax.device_get(in_numpy.jit(super_weights)(model, tokens, LAYERS, DIMS))
    check("qwen2_moe", found)
    assert {-1} < set(found.expert.flat)  # the shared expert, and others


def test_under_a_mesh():
    model, tokens, _ = mixture("qwen2_moe")
    with jax.set_mesh(make_mesh(data=2, model=2)):
        check("qwen2_moe", jax.device_get(jax.jit(super_weights)(model, tokens, LAYERS, DIMS)))


def test_records_are_of_what_an_mlp_writes_in_the_first_sequence_that_has_it():
    model, tokens, _ = mixture("qwen2_moe")
    record = lambda dim, layer, sublayer="mlp", strict=True: {
        "dim": dim, "strict": strict, "written_by": {"layer": layer, "sublayer": sublayer},
    }
    massive = [record(3, 2), record(5, 1, "attn"), record(7, 0), record(9, 1, strict=False)]
    first = lambda *place: SimpleNamespace(first=place)
    probed = SimpleNamespace(where={3: first(1, 6), 5: first(0, 0), 7: first(0, 2), 9: first(1, 6)})
    place = lambda name: SimpleNamespace(template=f"l{{l}}.{name}")
    prepared = SimpleNamespace(
        inputs=Inputs(tokens, lambda ids: [str(i) for i in ids]),
        checkpoint=SimpleNamespace(config=model.config, places={
            "blocks.mlp.experts.down": place("e{e}"), "blocks.mlp.shared.down": place("shared"),
        }),
    )
    found = super_weight_records(prepared, model, probed, massive)
    assert [(w["layer"], w["dim"], w["sequence"]) for w in found] == [(2, 3, 1), (0, 7, 0)]
    for w in found:
        token, written = plain("qwen2_moe", w["layer"], w["dim"], w["sequence"])
        expert = -1 if w["expert"] is None else w["expert"]
        assert w["position"] == token
        share = written[expert, w["column"]] / sum(written.values())
        assert w["share"] == pytest.approx(share, rel=1e-3)
        named = "shared" if w["expert"] is None else f"e{expert}"
        assert w["tensor"] == f"l{w['layer']}.{named}"
    relaxed = [record(dim, layer, strict=False) for dim, layer in ((9, 1), (7, 0))]
    found = super_weight_records(prepared, model, probed, relaxed)
    assert [(w["layer"], w["dim"]) for w in found] == [(1, 9), (0, 7)]
    assert super_weight_records(prepared, model, probed, massive[1:2]) == []
