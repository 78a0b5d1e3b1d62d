"""The model, the probe and gradients under every kind of mesh: the numbers of one device."""

import in_numpy
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


# Every mesh, and every variant, family and switch that splits arrays in a way of its own. What a
# variant does to the weights of one query does not depend on the mesh, so that some share a row
# with a mesh.
CASES = {
    "softpick": "data", "clipped": "fsdp", "standard": "model", "v_bias": "other_names",
    "sigmoid": "some_names", "k_bias": "auto", "kv_bias": "all", "sink": "all",
    "sink_logit": "all", "softmax1": "all", "gated": "all", "gpt2": "all", "qwen2": "model4",
    "mistral": "model", "bloom": "all", "olmo2": "all", "qwen2_moe": "all",
}


def test_every_mesh_and_variant_has_a_case():
    assert set(CASES.values()) == set(MESHES) and set(VARIANTS) <= set(CASES)


@pytest.mark.parametrize(("name", "mesh"), CASES.items())
def test_the_model_and_its_gradients(name, mesh):
    own = (CONFIGS | SWITCHES).get(name)
    config = WIDE.with_attention(variant=name) if own is None else own
    model, tokens = decoder(config, seed=2), ids(config, B, T)
    expected = in_numpy.jit(everything)(model, tokens)
    devices = MESHES[mesh]()
    with jax.set_mesh(devices):
        found = jax.jit(everything)(placed(model, devices), tokens)
    if mesh == "all":  # results stay spread out
        shape = found[0].addressable_shards[0].data.shape
        assert shape == (B // 4, T, config.embed.vocab_size // 2)
    found = jax.device_get(found)
    for a, b in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())
    for key, b in expected[2].items():
        # Some are 0 but for rounding: a key's bias shifts all logits of a query alike.
        limit = 1e-5 * np.abs(b).max() + 1e-6
        np.testing.assert_allclose(found[2][key], b, rtol=0, atol=limit, err_msg=key)


def test_batches_that_the_mesh_does_not_divide():
    model, tokens = decoder(WIDE), ids(WIDE, 3, 5)
    run = lambda model, tokens: model(tokens)[0]
    expected = in_numpy.jit(run)(model, tokens)
    mesh = make_mesh(data=4, model=2)
    with jax.set_mesh(mesh):
        found = np.asarray(jax.jit(run)(placed(model, mesh), tokens))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


# With axes that JAX is told of, and with those that it spreads over by itself.
@pytest.mark.parametrize("mesh", ["model", "auto"])
def test_what_is_measured(mesh):
    config = WIDE.with_attention(variant="kv_bias")
    model, tokens = decoder(config), ids(config, B, T)
    massive = np.arange(T)[None].repeat(B, 0) % 5 == 0

    def measure(model, tokens, massive):
        stats = magnitudes(model, tokens, top_k=3)
        found = find_massive(stats)
        return (stats, found), (explain(model, tokens, massive), token_losses(model, tokens))

    expected = in_numpy.jit(measure)(model, tokens, massive)
    mesh = MESHES[mesh]()
    with jax.set_mesh(mesh):
        found = jax.device_get(jax.jit(measure)(placed(model, mesh), tokens, massive))
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True):
        limit = 1e-5 * np.abs(np.nan_to_num(b)).max() if b.dtype == np.float32 else 0
        np.testing.assert_allclose(a, b, rtol=0, atol=limit)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
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


def test_statistics_stay_spread_out_over_the_batch():
    mesh = make_mesh(data=4, model=2)
    with jax.set_mesh(mesh):
        stats = jax.eval_shape(magnitudes, placed(decoder(WIDE), mesh), ids(WIDE, B, T))
    for layout in (stats.quantile.sharding, stats.top.value.sharding):
        assert layout.spec[1] and "data" in layout.spec[1]


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
