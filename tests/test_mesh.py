"""The model, the probe and gradients under every kind of mesh: the numbers of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from tiny_models import CONFIGS, LLAMA, SWITCHES, decoder, ids, varied

from jax_massact.measure.loss import token_losses
from jax_massact.measure.magnitudes import magnitudes
from jax_massact.measure.massive import find_massive
from jax_massact.measure.mechanism import explain
from jax_massact.mesh import LAYOUTS, make_mesh, parameter_sharding
from jax_massact.nn.edits import Edits
from jax_massact.nn.parameters import PARAMETERS, is_stacked, parameter
from jax_massact.nn.transformer import (
    Transformer,
    abstract,
    from_parameters,
    parameters,
)
from jax_massact.nn.variants import VARIANTS

B, T = 8, 12
WIDE = varied(LLAMA, heads=8, kv_heads=4)


def with_axes(shape, names, kind=AxisType.Explicit):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


MESHES = {
    "data": lambda: make_mesh(data=8),
    "fsdp": lambda: make_mesh(fsdp=8),
    # 8 does not divide the key/value heads: every device has all of them.
    "model": lambda: make_mesh(model=8),
    "all": lambda: make_mesh(data=2, fsdp=2, model=2),
    "model4": lambda: make_mesh(data=2, model=4),
    "other_names": lambda: with_axes((4, 2), ("batch", "tensor")),
    "some_names": lambda: with_axes((4, 2), ("data", "other")),
    "auto": lambda: with_axes((2, 2, 2), ("data", "fsdp", "model"), AxisType.Auto),
}


def placed(model: Transformer, mesh: jax.sharding.Mesh) -> Transformer:
    def put(name, leaf):
        sharding = parameter_sharding(
            mesh, parameter(name).letters, leaf.shape, stacked=is_stacked(name)
        )
        return jax.device_put(leaf, sharding)

    params = parameters(model)
    return from_parameters(model.config, {name: put(name, x) for name, x in params.items()})


@jax.jit
def everything(model, tokens):
    """Logits and residual streams of an edited run, and the gradient of a loss."""
    length = T + (model.config.block.attention.variant == "sink")
    edits = Edits.set_to([0, 1], np.arange(length) == 2, [1, 4], [5.0, -7.0])

    def loss(model):
        logits, streams = model(tokens, tap=lambda acts: acts.resid_post, edits=edits)
        chosen = jax.nn.log_softmax(logits.astype(jnp.float32))
        return (chosen * jnp.arange(chosen.shape[-1])).mean(), (logits, streams)

    grads, (logits, streams) = jax.grad(loss, has_aux=True)(model)
    return logits, streams, parameters(grads)


REFERENCE = {}


def reference(name, config):
    if name not in REFERENCE:
        model, tokens = decoder(config), ids(config, B, T)
        REFERENCE[name] = model, tokens, jax.device_get(everything(model, tokens))
    return REFERENCE[name]


def check(name, config, mesh):
    model, tokens, expected = reference(name, config)
    with jax.set_mesh(mesh):
        found = jax.device_get(everything(placed(model, mesh), tokens))
    for a, b in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())
    for key, b in expected[2].items():
        # Some are 0 but for rounding: a key's bias shifts all logits of a query alike.
        limit = 1e-5 * np.abs(b).max() + 1e-6
        np.testing.assert_allclose(found[2][key], b, rtol=0, atol=limit, err_msg=key)


@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "model4"])
def test_llama_under_every_mesh(mesh):
    check("wide", WIDE, MESHES[mesh]())


@pytest.mark.parametrize(("family", "mesh"), [
    ("gpt2", "all"), ("qwen2", "model4"), ("mistral", "model"),
])
def test_families_under_a_mesh(family, mesh):
    check(family, CONFIGS[family], MESHES[mesh]())


@pytest.mark.parametrize("switch", ["bloom", "olmo2", "qwen2_moe"])
def test_switches_under_a_mesh(switch):
    check(switch, SWITCHES[switch], MESHES["all"]())


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_under_a_mesh(variant):
    config = WIDE.with_attention(variant=variant)
    check(variant, config, MESHES["all"]())


def test_batches_that_the_mesh_does_not_divide():
    model, tokens = decoder(WIDE), ids(WIDE, 3, 5)
    run = jax.jit(lambda model, tokens: model(tokens)[0])
    expected = np.asarray(run(model, tokens))
    mesh = make_mesh(data=4, model=2)
    with jax.set_mesh(mesh):
        found = np.asarray(run(placed(model, mesh), tokens))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("mesh", ["all", "auto"])
def test_the_probe_under_a_mesh(mesh):
    model, tokens = decoder(WIDE), ids(WIDE, B, T)

    @jax.jit
    def probe(model, tokens):
        stats = magnitudes(model, tokens, top_k=3)
        return stats, find_massive(stats)

    expected = jax.device_get(probe(model, tokens))
    mesh = MESHES[mesh]()
    with jax.set_mesh(mesh):
        found = jax.device_get(probe(placed(model, mesh), tokens))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        limit = 1e-5 * np.abs(np.nan_to_num(b)).max() if b.dtype == np.float32 else 0
        np.testing.assert_allclose(a, b, rtol=0, atol=limit)


@pytest.mark.parametrize("mesh", ["model", "auto"])
def test_the_mechanism_under_a_mesh(mesh):
    config = WIDE.with_attention(variant="kv_bias")
    model, tokens = decoder(config), ids(config, B, T)
    massive = jnp.asarray(np.arange(T)[None].repeat(B, 0) % 5 == 0)
    run = jax.jit(lambda model, tokens, massive: (
        explain(model, tokens, massive), token_losses(model, tokens)
    ))
    expected = jax.device_get(run(model, tokens, massive))
    mesh = MESHES[mesh]()
    with jax.set_mesh(mesh):
        found = jax.device_get(run(placed(model, mesh), tokens, massive))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())


def test_parameters_are_spread_out():
    mesh = make_mesh(data=2, fsdp=2, model=2)
    model = placed(decoder(WIDE), mesh)
    spec = {name: leaf.sharding.spec for name, leaf in parameters(model).items()}
    whole = lambda spec: tuple(e if isinstance(e, tuple) or e is None else (e,) for e in spec)
    assert whole(spec["embed"]) == (("model",), ("fsdp",))
    assert whole(spec["blocks.attn.q"]) == (None, ("fsdp",), ("model",), None)
    assert whole(spec["blocks.mlp.down"]) == (None, ("model",), ("fsdp",))
    assert whole(spec["final_norm.scale"]) == (None,)
    assert parameters(model)["blocks.mlp.up"].addressable_shards[0].data.size * 4 == (
        WIDE.depth * WIDE.width * WIDE.block.mlp.hidden
    )


def test_outputs_stay_spread_out_over_the_batch():
    mesh = make_mesh(data=4, model=2)
    with jax.set_mesh(mesh):
        logits, stats = jax.jit(lambda m, t: (m(t)[0], magnitudes(m, t)))(
            placed(decoder(WIDE), mesh), ids(WIDE, B, T)
        )
    shard = logits.addressable_shards[0].data
    assert shard.shape == (B // 4, T, WIDE.embed.vocab_size // 2)
    assert stats.quantile.addressable_shards[0].data.shape[1] == B // 4


def test_axes_that_do_not_divide_are_left_out():
    mesh = make_mesh(fsdp=4, model=2)
    sharding = parameter_sharding(mesh, "vd", (63, 16), stacked=False)
    assert sharding.shard_shape((63, 16)) == (63, 4)
    sharding = parameter_sharding(mesh, "dnh", (3, 16, 1, 8), stacked=True)
    assert sharding.shard_shape((3, 16, 1, 8)) == (3, 4, 1, 8)


def test_a_mesh_of_some_devices():
    mesh = make_mesh(data=2, devices=jax.devices()[2:4])
    assert list(mesh.devices.flat) == jax.devices()[2:4]
    assert mesh.axis_names == ("dcn", "data", "fsdp", "model")
    assert set(mesh.axis_types) == {AxisType.Explicit}


# A variant's parameters are its own: shaped by the heads, and by no other switch.
@pytest.mark.parametrize(("family", "variant"), [
    *((family, "standard") for family in CONFIGS | SWITCHES),
    *((family, variant) for family in ("llama", "qwen2") for variant in VARIANTS),
])
def test_every_parameter_has_a_row_that_fits_it(family, variant):
    config = (CONFIGS | SWITCHES)[family].with_attention(variant=variant)
    for name, leaf in parameters(abstract(config)).items():
        row, axes = parameter(name), leaf.ndim - is_stacked(name)
        assert len(LAYOUTS[row.letters]) == len(row.letters) == axes, name
        assert row.inputs < axes or not row.inputs, name
        assert not row.rotary or row.letters.endswith("h"), name


def test_a_parameter_without_a_row_is_an_error():
    assert {row.letters for row in PARAMETERS.values()} <= set(LAYOUTS)
    with pytest.raises(KeyError, match="'blocks.attn.variant.base' has no row"):
        parameter("blocks.attn.variant.base")
