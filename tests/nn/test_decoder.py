"""The whole model: causality, taps, compute dtypes, refusals, and its parameters by name."""

import dataclasses

import in_numpy
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from tiny_models import CONFIGS, LLAMA, decoder, ids, varied

from jax_massact.errors import ConfigError
from jax_massact.nn.block_config import RopeConfig
from jax_massact.nn.transformer import (
    Transformer,
    abstract,
    from_parameters,
    parameters,
)

FAMILIES = pytest.mark.parametrize("family", CONFIGS)


def influence(config, T):
    """[t, s]: the largest |d logits[t] / d embedding of token s|."""
    # A head of its own: a tied one would see every row of the embedding.
    model = decoder(varied(config, tied=False))
    tokens = np.arange(T)[None] + 3
    params = parameters(model)

    def logits(embed):
        return from_parameters(model.config, params | {"embed": embed})(tokens)[0][0]

    weights = np.random.default_rng(0).standard_normal(config.embed.vocab_size)
    cotangents = jnp.asarray(np.eye(T)[:, :, None] * weights, jnp.float32)
    pull = in_numpy.jit(lambda embed, g: jax.vmap(jax.vjp(logits, embed)[1])(g))
    (rows,) = pull(params["embed"], cotangents)
    return np.abs(rows)[:, tokens[0]].max(-1)


@FAMILIES
def test_no_token_sees_a_later_one(family):
    T = 9
    seen = influence(CONFIGS[family], T)
    behind = np.arange(T)[:, None] - np.arange(T)
    # Every layer reaches back by a window less one.
    window = CONFIGS[family].block.attention.window
    reach = T if window is None else LLAMA.depth * (window - 1)
    np.testing.assert_array_equal(seen > 0, (behind >= 0) & (behind <= reach))


@pytest.mark.parametrize("family", ["llama3", "gpt2"])
def test_unroll_changes_nothing(family):
    config = CONFIGS[family]
    model, tokens = decoder(config), ids(config, 2, 7)
    run = in_numpy.jit(
        lambda model, unroll: model(tokens, tap=lambda acts: acts.resid_post, unroll=unroll),
        static=["unroll"],
    )
    for one, all_at_once in zip(run(model, 1), run(model, config.depth), strict=True):
        np.testing.assert_allclose(one, all_at_once, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gpt2"])
def test_acts_are_what_the_block_computed(family):
    config = CONFIGS[family]
    model, tokens = decoder(config), ids(config, 2, 7)

    @in_numpy.jit
    def run(model):
        logits, acts = model(tokens, tap=lambda acts: acts)
        blocks = [jax.tree.map(lambda x, l=l: x[l], model.blocks) for l in range(config.depth)]
        again = [
            (block.attn_norm(acts.resid_pre[l]), block.mlp_norm(acts.resid_mid[l]),
             block.mlp.output(acts.mlp_hidden[l]))
            for l, block in enumerate(blocks)
        ]
        return logits, acts, again, model.embedded(tokens), model.logits(acts.resid_post[-1])

    logits, acts, again, embedded, last = run(model)
    c = config.block.attention
    L, N, K, H = config.depth, c.heads, c.kv_heads, c.head_dim
    assert acts.q.shape == (L, 2, 7, N, H) and acts.k.shape == acts.v.shape == (L, 2, 7, K, H)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    close(acts.resid_pre + acts.attn_out, acts.resid_mid)
    close(acts.resid_mid + acts.mlp_out, acts.resid_post)
    close(acts.resid_post[:-1], acts.resid_pre[1:])
    close(acts.resid_pre[0], embedded)
    for l, (attn_in, mlp_in, mlp_out) in enumerate(again):
        close(acts.attn_in[l], attn_in)
        close(acts.mlp_in[l], mlp_in)
        close(acts.mlp_out[l], mlp_out)
    close(logits, last)


def test_a_tap_may_give_nothing():
    model, tokens = decoder(LLAMA), ids(LLAMA, 1, 4)
    _, empty = model.residual(tokens, tap=lambda acts: acts.resid_post[:, :0])
    assert empty.shape == (3, 1, 0, 16)


def test_taps_stop_gradients():
    model, tokens = decoder(LLAMA), ids(LLAMA, 1, 4)

    def loss(model):
        return model(tokens, tap=lambda acts: acts.resid_post)[1].sum()

    assert all(not leaf.any() for leaf in jax.tree.leaves(in_numpy.jit(jax.grad(loss))(model)))


def test_what_is_not_read_costs_nothing():
    def cost(f):
        tokens = jax.ShapeDtypeStruct((2, 32), jnp.int32)
        compiled = jax.jit(f).lower(abstract(LLAMA), tokens).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    plain = cost(lambda model, tokens: model(tokens)[0])
    assert cost(lambda model, tokens: model(tokens, tap=lambda acts: None)) == plain
    unread = cost(lambda model, tokens: model(tokens, tap=lambda acts: acts.q.mean())[0])
    assert unread[0] == plain[0]
    # The head alone: 2 B T D V of the operations.
    no_logits = cost(lambda model, tokens: model(tokens, tap=lambda acts: acts.resid_post.max())[1])
    assert no_logits[0] < plain[0] - 0.9 * 2 * 2 * 32 * LLAMA.width * LLAMA.embed.vocab_size


@pytest.mark.parametrize("family", ["llama3", "gpt2"])
def test_bfloat16_compute_with_float32_parameters(family):
    config = CONFIGS[family]
    model, tokens = decoder(config, spread=0.1), ids(config, 2, 7)
    low = from_parameters(dataclasses.replace(config, dtype="bfloat16"), parameters(model))
    run = in_numpy.jit(lambda model: model(tokens, tap=lambda acts: acts.resid_post))
    logits, acts = run(low)
    # Angles are computed in float32, whatever the model.
    tap = lambda acts: acts._replace(rotation=None)
    shapes = jax.eval_shape(lambda model: model(tokens, tap=tap), low)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}
    assert logits.dtype == acts.dtype == jnp.bfloat16
    exact = np.asarray(run(model)[0])
    error = np.sqrt(np.mean((np.float32(logits) - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 0.04


@pytest.mark.parametrize(("tokens", "message"), [
    (jnp.zeros(5, jnp.int32), r"shape \(5,\) and dtype int32; expected: integer ids"),
    (jnp.zeros((1, 2, 3), jnp.int32), r"shape \(1, 2, 3\)"),
    (jnp.zeros((1, 5)), r"dtype float32; expected: integer ids \[sequences, tokens\]"),
    (jnp.zeros((1, 5), bool), "dtype bool"),
    (jnp.zeros((2, 65), jnp.int32), "a sequence of 65 tokens; expected: from 1 to 64"),
    (jnp.zeros((2, 0), jnp.int32), "a sequence of 0 tokens; expected: from 1 to 64"),
])
def test_wrong_tokens(tokens, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(Transformer.check, decoder(LLAMA), tokens)


def test_first_position_shortens_the_longest_sequence():
    config = CONFIGS["gpt2"]
    model = abstract(config)
    longest = config.context_length - config.first_position
    run = lambda T: jax.eval_shape(lambda m, t: m(t), model, jax.ShapeDtypeStruct((1, T), "int32"))
    run(longest)
    with pytest.raises(ValueError, match=f"expected: from 1 to {longest}"):
        run(longest + 1)


@FAMILIES
def test_parameters_round_trip(family):
    config = CONFIGS[family]
    model = decoder(config)
    params = parameters(model)
    back = from_parameters(config, dict(reversed(params.items())))
    assert jax.tree.structure(back) == jax.tree.structure(model)
    jax.tree.map(np.testing.assert_array_equal, back, model)
    for name, leaf in params.items():
        assert (leaf.shape[0] == config.depth) == name.startswith("blocks."), name


def test_parameters_follow_the_configuration():
    base = set(parameters(abstract(LLAMA)))
    assert {"embed", "head", "final_norm.scale", "blocks.attn.q", "blocks.mlp.gate"} < base
    with_gpt2 = set(parameters(abstract(CONFIGS["gpt2"])))
    assert base - with_gpt2 == {"head", "blocks.mlp.gate"}
    assert with_gpt2 - base == {
        "positions", "final_norm.bias", "blocks.attn_norm.bias", "blocks.mlp_norm.bias",
        "blocks.attn.q_bias", "blocks.attn.k_bias", "blocks.attn.v_bias", "blocks.attn.out_bias",
        "blocks.mlp.up_bias", "blocks.mlp.down_bias",
    }


def test_wrong_parameters_are_named():
    params = parameters(decoder(LLAMA))
    head = params.pop("head")
    with pytest.raises(ValueError, match=r"missing parameters: \['head'\]; unknown .*: \['tail'\]"):
        from_parameters(LLAMA, params | {"tail": head})
    with pytest.raises(ValueError, match=r"head has shape \(64, 16\); expected: \(16, 64\)"):
        from_parameters(LLAMA, params | {"head": head.T})


def test_new_models_differ_by_key_layer_and_parameter():
    new = jax.jit(lambda key: Transformer(LLAMA, key))
    a, b = (new(jax.random.key(i)) for i in range(2))
    for (name, x), y in zip(parameters(a).items(), parameters(b).values(), strict=True):
        if "norm" in name:
            assert (x == 1).all()
            continue
        assert (x != y).mean() > 0.99, name
        assert not name.startswith("blocks.") or (x[0] != x[1]).mean() > 0.99, name
    drawn = parameters(a)
    for one, other in (("attn.k", "attn.v"), ("mlp.up", "mlp.gate")):
        assert (drawn[f"blocks.{one}"] != drawn[f"blocks.{other}"]).mean() > 0.99


@pytest.mark.parametrize("depth", [2, 4, 5])
def test_blocks_of_several_kinds_alternate(depth):
    """A pattern of windows and positions, a partial period included, against NumPy in float64."""
    local = varied(LLAMA, window=2, rope=RopeConfig(base=100.0, scale=1.25))
    config = varied(
        LLAMA, depth=depth, others=(local.block, varied(LLAMA, position="none", scale=0.2).block)
    )
    model, tokens = decoder(config), ids(config, 2, 7)
    run = in_numpy.jit(lambda model: model(tokens, tap=lambda acts: (acts.resid_post, acts.z)))
    logits, (streams, z) = run(model)
    assert streams.shape[0] == z.shape[0] == depth
    for b in range(2):
        expected = oracle.run(model, tokens[b])
        np.testing.assert_allclose(streams[:, b], expected["post"], rtol=0, atol=3e-5)
        np.testing.assert_allclose(logits[b], expected["logits"], rtol=0, atol=3e-5)


def test_kinds_with_other_parameters_are_refused():
    with pytest.raises(ConfigError, match="others differ from block in what decides the param"):
        varied(LLAMA, others=(varied(LLAMA, hidden=25).block,))


def test_ids_out_of_range_are_refused():
    model = decoder(LLAMA)
    for wrong in (64, -1, 9999):
        with pytest.raises(ValueError, match=f"a token id is {wrong}; expected: 0 to 63"):
            model(jnp.asarray([[3, wrong, 5]]))


def test_a_variant_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match="is 'kv_bais'; expected: .* Did you mean kv_bias"):
        abstract(varied(LLAMA, variant="kv_bais"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_no_copy_of_all_parameters_is_made(dtype, kinds):
    """Not by the loop over blocks, nor because a CPU computes in float32 what is bfloat16."""
    config = varied(LLAMA, depth=40, width=64, hidden=512, dtype=dtype)
    other = varied(config, window=3).block
    config = dataclasses.replace(config, others=(other,) * (kinds - 1))
    model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), abstract(config))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    run = jax.jit(lambda model, tokens: model.residual(tokens)[0])
    memory = run.lower(model, tokens).compile().memory_analysis()
    assert memory.argument_size_in_bytes > 40 * 64 * 512 * 3 * jnp.dtype(dtype).itemsize
    assert memory.temp_size_in_bytes < memory.argument_size_in_bytes / 4
