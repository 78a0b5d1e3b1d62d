"""Attention, norms and value updates against a plain NumPy model, number by number."""

import dataclasses
import itertools

import in_numpy
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from planted import BOS, CONFIG, DIM, WRITER, llama_written_and_removed, written_and_removed
from tiny_models import CONFIGS, decoder, ids, varied

from jax_massact.measure.magnitudes import magnitudes
from jax_massact.measure.massive import find_hits
from jax_massact.measure.mechanism import explain, massive_tokens, sink_rate
from jax_massact.nn.attention import QUERY_BLOCK
from jax_massact.nn.transformer import from_parameters, parameters
from jax_massact.nn.variants import VARIANTS
from jax_massact.studies.collector import Found
from jax_massact.studies.explain.run import Totals, mark_tokens

S, T = 3, 11
EPSILON, LENGTH = 0.12, 6


def models():
    llama = llama_written_and_removed().louder(12).build()
    kv = varied(CONFIGS["llama"], variant="kv_bias", window=5, bias_position=0, first_position=2)
    return {
        "gpt2": written_and_removed().louder(12).build(),
        "llama": llama,
        "kv_bias": decoder(kv),
    }


MODELS = models()
EACH = pytest.mark.parametrize("name", MODELS)


def case(name):
    model = MODELS[name]
    tokens = np.array(ids(model.config, S, T))
    tokens[:, 0] = BOS
    marks = np.zeros((S, T), bool)
    marks[:, 0] = True
    marks[1, 4] = True
    return model, tokens, marks


def measured(name):
    model, tokens, marks = case(name)
    step = in_numpy.jit(explain, static=["sink_length"])
    total = Totals(EPSILON)
    # Batches of 2 and 1, merged.
    for part in (slice(0, 2), slice(2, 3)):
        batch = jax.device_get(
            step(model, tokens[part], jnp.asarray(marks[part]), sink_length=LENGTH)
        )
        total.add(jax.tree.map(np.float64, batch))
    layers = total.layers(model.config.block.attention.variant == "kv_bias")
    runs = [oracle.run(model, row) for row in tokens]
    return layers, total, runs, marks, model


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_shows_what_its_extra_key_takes(variant):
    config = varied(CONFIGS["llama"], variant=variant)
    model, tokens = decoder(config), np.array(ids(config, S, T))
    massive = jnp.zeros((S, T + VARIANTS[variant].prefix), bool)
    total = Totals(EPSILON)
    batch = jax.device_get(in_numpy.jit(explain)(model, tokens, massive))
    total.add(jax.tree.map(np.float64, batch))
    takes = VARIANTS[variant].extra_key is not None
    weights = np.array([oracle.run(model, row)["p"] for row in tokens])
    expected = weights[..., 1:, weights.shape[-2]:].sum(-1).mean((0, -1))
    assert takes == bool(expected.any())
    for layer, share in zip(total.layers(takes), expected, strict=True):
        found = layer["attention"]["extra"]
        assert not takes and found is None or found == pytest.approx(share.tolist(), abs=1e-5)


@EACH
def test_attention_shares_and_logits(name):
    layers, total, runs, marks, model = measured(name)
    for l, layer in enumerate(layers):
        a = layer["attention"]
        rates = []
        for s, run in enumerate(runs):
            p = run["p"][l]
            heads = [np.mean([p[n, t, 0] for t in range(LENGTH)]) for n in range(len(p))]
            rates.append(np.mean([h > EPSILON for h in heads]))
            np.testing.assert_allclose(total.sink_rate()[l, s], rates[-1], atol=1e-6)
        assert a["sink_rate"]["mean"] == pytest.approx(np.mean(rates), abs=1e-6)
        assert a["sink_rate"]["std"] == pytest.approx(np.std(rates), abs=1e-6)
        for n in range(model.config.block.attention.heads):
            first, extra, massive, logits, others = [], [], [], [], []
            for s, run in enumerate(runs):
                p, score, at = run["p"][l][n], run["scores"][l][n], marks[s]
                seen = np.isfinite(score[:, :T])
                first.append(np.mean([p[t, 0] for t in range(1, T)]))
                extra.append(np.mean([p[t, T:].sum() for t in range(1, T)]))
                queries = [t for t in range(T) if not at[t] and (seen[t] & at).any()]
                massive.append(np.mean([p[t, :T][at].sum() for t in queries]))
                logits.append(np.mean([score[t, :T][seen[t] & at].mean() for t in queries]))
                ordinary = [t for t in range(1, T) if not at[t] and (seen[t] & ~at).any()]
                others.append(np.mean([score[t, :T][seen[t] & ~at].mean() for t in ordinary]))
            close = lambda found, expected: np.testing.assert_allclose(
                found, np.mean(expected), rtol=2e-5, atol=2e-6
            )
            close(a["first"][n], first)
            close(a["massive"][n], massive)
            close(a["logit_massive"][n], logits)
            close(a["logit_other"][n], others)
            if a["extra"] is None:
                assert not np.any(extra)
            else:
                close(a["extra"][n], extra)


@EACH
def test_norms_cosines_and_effective_dimensions(name):
    layers, _, runs, marks, _ = measured(name)
    for l, layer in enumerate(layers):
        for field, source in (("stream", "pre"), ("normed", "normed"), ("keys", "k"),
                              ("values", "v")):
            for part, mask in (("massive", marks), ("other", ~marks)):
                rows = [r[source][l].reshape(T, -1)[m] for r, m in zip(runs, mask, strict=True)]
                flat = np.concatenate(rows)
                found = layer[field]
                norms = np.linalg.norm(flat, axis=1)
                assert found[f"norm_{part}"] == pytest.approx(norms.mean(), rel=2e-5)
                dims = np.mean([(x**2).sum() ** 2 / (x**4).sum() for x in flat])
                assert found[f"dims_{part}"] == pytest.approx(dims, rel=1e-4)
                cosines = [
                    x @ y / np.linalg.norm(x) / np.linalg.norm(y)
                    for a, b in itertools.combinations(rows, 2) for x in a for y in b
                ]
                assert found[f"cosine_{part}"] == pytest.approx(np.mean(cosines), abs=2e-5)
        drain = layer["values"]["norm_massive"] / layer["values"]["norm_other"]
        assert layer["value_drain"] == pytest.approx(drain)


@EACH
def test_value_updates_and_their_constancy(name):
    layers, _, runs, marks, model = measured(name)
    c = model.config.block.attention
    group = c.heads // c.kv_heads
    for l, layer in enumerate(layers):
        updates = {"massive": [], "other": []}
        shares = {"massive": [], "other": []}
        for run, at in zip(runs, marks, strict=True):
            p, v = run["p"][l], run["v"][l]
            if c.variant == "kv_bias":
                bias = np.float64(parameters(model)["blocks.attn.variant.v"][l])
                v = np.concatenate([v, bias])
            of = lambda t, keys, p=p, v=v: np.concatenate(
                [p[n, t, keys] @ v[keys, n // group] for n in range(c.heads)]
            )
            seen = np.isfinite(run["scores"][l][0, :, :T])
            queries = [t for t in range(T) if not at[t] and (seen[t] & at).any()]
            keys = np.arange(len(v))
            is_massive = np.concatenate([at, np.zeros(len(v) - T, bool)])
            u = np.array([of(t, keys[is_massive]) for t in queries])
            r = np.array([of(t, keys[~is_massive]) for t in queries])
            for part, rows in (("massive", u), ("other", r)):
                updates[part].append(rows)
                shares[part].append(np.mean(
                    [x @ z / (z @ z) for x, z in zip(rows, u + r, strict=True)]
                ))
        for part in ("massive", "other"):
            found = layer[f"{part}_update"]
            per_sequence = [constancy(rows) for rows in updates[part]]
            for i, field in enumerate(("cosine", "deviation")):
                values = [x[i] for x in per_sequence]
                assert found[field]["mean"] == pytest.approx(np.mean(values), rel=1e-4)
                assert found[field]["std"] == pytest.approx(np.std(values), rel=1e-2, abs=1e-5)
            pooled = constancy(np.concatenate(updates[part]))
            assert found["cosine_pooled"] == pytest.approx(pooled[0], rel=1e-4)
            assert found["deviation_pooled"] == pytest.approx(pooled[1], rel=1e-4)
            assert found["share"]["mean"] == pytest.approx(np.mean(shares[part]), rel=1e-4)
        total = sum(layer[f"{part}_update"]["share"]["mean"] for part in ("massive", "other"))
        assert total == pytest.approx(1, abs=1e-5)


def constancy(rows):
    mean = rows.mean(0)
    cosine = [x @ mean / np.linalg.norm(x) / np.linalg.norm(mean) for x in rows]
    deviation = np.sqrt(np.mean([((x - mean) ** 2).sum() for x in rows])) / np.linalg.norm(mean)
    return np.mean(cosine), deviation


def test_long_sequences_are_measured_block_by_block():
    """More queries than one block holds, and a window: as dense softmax gives."""
    config = varied(CONFIGS["mistral"], context_length=400, depth=1, window=150)
    model = decoder(config)
    length = 2 * QUERY_BLOCK + 7
    tokens = np.array(ids(config, 1, length))
    marks = np.arange(length)[None] % 50 == 3
    found = jax.device_get(in_numpy.jit(explain)(model, tokens, jnp.asarray(marks)))
    acts = jax.device_get(in_numpy.jit(lambda m: m(tokens, tap=lambda acts: acts)[1])(model))
    q, k = np.float64(acts.q[0, 0]), np.float64(acts.k[0, 0])
    behind = np.arange(length)[:, None] - np.arange(length)
    seen = (behind >= 0) & (behind < 150)
    at = marks[0]
    queries = ~at & (seen & at).any(1)
    c = config.block.attention
    for n in range(c.heads):
        scores = np.where(seen, q[:, n] @ k[:, n // 2].T / np.sqrt(c.head_dim), -np.inf)
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        a = found.attention
        assert a.massive[0, 0, n] == pytest.approx(p[queries][:, at].sum(1).mean(), rel=1e-4)
        assert a.sink[0, 0, n] == pytest.approx(p[:64, 0].mean(), rel=1e-4)
        assert a.first[0, 0, n] == pytest.approx(p[1:, 0].mean(), rel=1e-4)
    picture = found.map[0, 0]
    assert picture.shape == (48, 48)
    np.testing.assert_allclose(picture.sum(-1), 1, rtol=1e-5)


def test_no_more_memory_than_a_few_blocks_of_one_layer():
    """No [N, T, T] array beyond what the forward pass itself takes."""
    config = dataclasses.replace(CONFIGS["llama"], context_length=4096)
    model = decoder(config)
    T = 2048

    def temporary(run):
        tokens = jax.ShapeDtypeStruct((1, T), jnp.int32)
        marks = jax.ShapeDtypeStruct((1, T), jnp.bool_)
        return jax.jit(run).lower(model, tokens, marks).compile().memory_analysis()

    forward = temporary(lambda model, tokens, marks: model.residual(tokens)[0])
    both = temporary(explain)
    extra = both.temp_size_in_bytes - forward.temp_size_in_bytes
    assert extra < 0.25 * (T * T * config.block.attention.heads * 4)


def test_nothing_massive_leaves_sinks_and_norms():
    model, tokens, _ = case("llama")
    batch = jax.device_get(in_numpy.jit(explain)(model, tokens, jnp.zeros((S, T), bool)))
    total = Totals(EPSILON)
    total.add(jax.tree.map(np.float64, batch))
    layer = total.layers(False)[2]
    assert layer["attention"]["massive"] is None and layer["massive_update"] is None
    assert layer["value_drain"] is None and layer["keys"]["cosine_massive"] is None
    assert 0 < layer["attention"]["first"][0] < 1 and layer["keys"]["norm_other"] > 0
    assert np.isfinite(layer["attention"]["logit_other"]).all()


def test_massive_tokens_are_those_with_a_hit():
    model = written_and_removed().build()
    tokens = ids(CONFIG, 2, 9)
    stats = in_numpy.jit(magnitudes)(model, tokens)
    hits = find_hits(stats)
    marks = in_numpy.jit(massive_tokens, static=["length"])(stats.places.position, hits.strict, 9)
    np.testing.assert_array_equal(marks, np.arange(9)[None].repeat(2, 0) == 0)
    assert not massive_tokens(stats.places.position, jnp.zeros_like(hits.strict), 9).any()


def test_the_sink_rate_counts_heads_over_epsilon():
    model, tokens, marks = case("gpt2")
    stats = in_numpy.jit(explain)(model, tokens, jnp.asarray(marks)).attention
    for epsilon in (0.0, 0.1, 0.3, 1.0):
        expected = (np.asarray(stats.sink) > epsilon).mean(-1)
        np.testing.assert_allclose(sink_rate(stats, epsilon), expected, rtol=1e-6)


def test_marks_keep_to_the_layers_of_the_verdict():
    record = dict(dim=DIM, strict=True, first_layer=2, last_layer=3)
    hit = lambda layer, position, strict=True, dim=DIM: Found(layer, position, dim, 1.0, strict)
    found = [[hit(2, 0), hit(1, 5), hit(3, 4, strict=False), hit(2, 6, dim=9)], [hit(3, 7)]]
    marks = mark_tokens(found, [record], (2, 9))
    assert [*map(tuple, np.argwhere(marks).tolist())] == [(0, 0), (1, 7)]
    # Without any strict record, the relaxed ones count.
    relaxed = [record | {"strict": False}]
    assert mark_tokens(found, relaxed, (2, 9)).sum() == 3
    assert WRITER < 2


def test_parameters_of_the_plain_model_are_used():
    """The reference is not blind: a change of any block's parameter changes its logits."""
    model, tokens, _ = case("llama")
    params = parameters(model)
    base = oracle.run(model, tokens[0])["logits"]
    for name in params:
        moved = from_parameters(model.config, params | {name: params[name] * 1.1})
        assert np.abs(oracle.run(moved, tokens[0])["logits"] - base).max() > 1e-7, name
