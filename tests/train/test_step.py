"""The update: the same numbers on any mesh and in any number of parts, and what changes them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import varied
from train_runs import MICRO, Counting

from jax_massact.errors import ConfigError
from jax_massact.nn.parameters import parameter
from jax_massact.nn.transformer import abstract, parameters
from jax_massact.nn.variants import VARIANTS
from jax_massact.train.config import MeshConfig, OptimizerConfig
from jax_massact.train.optimizer import (
    MUON_RMS,
    make_optimizer,
    schedule,
)
from jax_massact.train.step import (
    abstract_state,
    compile_update,
    loss,
    make_mesh,
    new_state,
    place,
    validation,
)

DATA = Counting()


@functools.cache
def start(seed=0):
    config = dataclasses.replace(MICRO, seed=seed)
    return jax.device_get(new_state(config, make_mesh(config.mesh)))


def run(config, steps=20):
    """The losses of the first updates, and the last state."""
    mesh = make_mesh(config.mesh)
    likes, structure = jax.tree.flatten(abstract_state(config, mesh))
    leaves = zip(jax.tree.leaves(start()), likes, strict=True)
    state = jax.tree.unflatten(structure, [jax.device_put(x, like.sharding) for x, like in leaves])
    update = compile_update(config, mesh)
    losses = []
    with jax.set_mesh(mesh):
        for step in range(steps):
            state, metrics = update(state, place(DATA.batch(step), config.accumulate, mesh))
            losses.append(float(metrics.loss))
    return np.array(losses), state


@pytest.fixture(scope="module")
def plain():
    return run(MICRO)


def check(config, plain):
    losses, state = run(config)
    np.testing.assert_allclose(losses, plain[0], rtol=0, atol=3e-6)
    assert losses[-1] < losses[0] - 1
    return state


def test_new_parameters_are_a_function_of_the_seed():
    config = dataclasses.replace(MICRO, mesh=MeshConfig(data=2, fsdp=2, model=2))
    spread = new_state(config, make_mesh(config.mesh))
    for name, x in start().params.items():
        # Compiled for several devices, jax 0.12 rounds some numbers otherwise: the last bit.
        np.testing.assert_allclose(spread.params[name], x, rtol=5e-7, err_msg=name)
    assert (start(1).params["embed"] != start().params["embed"]).all()
    stds = {"embed": 0.02, "blocks.attn.out": 0.01, "blocks.attn.variant.k": 0.02}
    for name, std in stds.items():
        np.testing.assert_allclose(start().params[name].std(), std, rtol=0.2)


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_meshes_give_the_losses_of_one_device(shape, plain):
    data, fsdp, model = shape
    state = check(
        dataclasses.replace(MICRO, mesh=MeshConfig(data=data, fsdp=fsdp, model=model)), plain
    )
    # Adam's averages live where their parameters do.
    averages = state.optimizer[1]
    for name, leaf in state.params.items():
        assert averages.mu[name].sharding == averages.nu[name].sharding == leaf.sharding
    up = state.params["blocks.mlp.up"]
    assert up.addressable_shards[0].data.size * fsdp * model == up.size


def test_parts_of_a_batch_give_the_gradient_of_the_whole(plain):
    check(dataclasses.replace(MICRO, accumulate=4), plain)


def test_a_batch_in_parts_on_a_mesh(plain):
    check(dataclasses.replace(MICRO, accumulate=2, mesh=MeshConfig(data=2, model=2)), plain)


def test_remat_and_unrolled_layers_change_nothing(plain):
    check(dataclasses.replace(MICRO, remat=True, unroll=True), plain)


def test_remat_keeps_less_memory():
    config = dataclasses.replace(MICRO.model, depth=8)
    model = abstract(config)
    tokens = jax.ShapeDtypeStruct((8, 17), jnp.int32)

    def temporary(remat):
        settings = dataclasses.replace(MICRO, model=config, remat=remat)
        grad = jax.jit(jax.grad(lambda model, tokens: loss(model, tokens, settings)))
        return grad.lower(model, tokens).compile().memory_analysis().temp_size_in_bytes

    assert temporary(True) < 0.7 * temporary(False)


@pytest.mark.parametrize("depth, windows", [(4, ()), (4, (4,)), (5, (4,))])
def test_remat_keeps_no_copy_of_the_parameters(depth, windows):
    """A step keeps the residual stream [B T D]; also where it has two kinds of blocks."""
    block = MICRO.model.block
    others = [
        dataclasses.replace(block, attention=dataclasses.replace(block.attention, window=w))
        for w in windows
    ]
    model = dataclasses.replace(MICRO.model, depth=depth, others=tuple(others))
    settings = dataclasses.replace(MICRO, model=model, remat=True)
    traced = jax.make_jaxpr(jax.grad(lambda model, tokens: loss(model, tokens, settings)))(
        abstract(model), jax.ShapeDtypeStruct((8, 17), jnp.int32)
    )
    forward = next(e for e in traced.eqns if e.primitive.name == "scan")
    # What the scan carries comes out once, what it keeps comes out stacked.
    stream = (8, 16, MICRO.model.width)
    shapes = [v.aval.shape for v in forward.outvars]
    assert shapes == [stream, (depth // (1 + len(others)), *stream)]


def test_muon_on_a_mesh():
    config = dataclasses.replace(
        MICRO, optimizer=dataclasses.replace(MICRO.optimizer, name="muon", warmup=0)
    )
    optimizer = make_optimizer(config)
    names = ("embed", "blocks.attn.q", "blocks.attn.out", "blocks.mlp.up")
    params = {name: start().params[name] for name in names}

    def two_updates(params):
        state = optimizer.init(params)
        for _ in range(2):
            changes, state = optimizer.update(params, state, params)
            params = jax.tree.map(jnp.add, params, changes)
        return params

    expected = jax.jit(two_updates)(params)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    layouts = abstract_state(dataclasses.replace(MICRO, mesh=MeshConfig(fsdp=2, model=2)), mesh)
    with jax.set_mesh(mesh):
        spread = {k: jax.device_put(x, layouts.params[k].sharding) for k, x in params.items()}
        found = jax.jit(two_updates)(spread)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5, err_msg=name)
        assert found[name].sharding == layouts.params[name].sharding
        assert np.abs(expected[name] - params[name]).max() > 1e-3


def test_muon_orthogonalizes_each_layers_matrix_and_adam_does_the_rest():
    settings = OptimizerConfig(name="muon", clip=0.0, weight_decay=0.0, warmup=0, lr=1.0,
                               final_lr=1.0, eps=1e-30)
    optimizer = make_optimizer(dataclasses.replace(MICRO, optimizer=settings))
    shapes = parameters(abstract(MICRO.model))
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    params, grads = jax.tree.map(draw, shapes), jax.tree.map(draw, shapes)
    update, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    rows = {"blocks.attn.q": 32, "blocks.attn.out": 32, "blocks.mlp.up": 32, "blocks.mlp.down": 128}
    for name, rows_of_one in rows.items():
        for layer in np.asarray(update[name]):
            matrix = layer.reshape(rows_of_one, -1)
            sizes = np.linalg.svd(matrix / (MUON_RMS * max(matrix.shape) ** 0.5), compute_uv=False)
            assert 0.5 < sizes.min() and sizes.max() < 1.3, name
    for name in shapes.keys() - {*rows, "blocks.attn.k", "blocks.attn.v"}:
        np.testing.assert_allclose(np.abs(update[name]), 1.0, rtol=1e-4, err_msg=name)


def test_what_decays():
    """As the authors store them: k' and v' have four dimensions there, biases and norms one."""
    expected = {"embed", "positions", "blocks.attn.q", "blocks.attn.k", "blocks.attn.v",
                "blocks.attn.out", "blocks.mlp.up", "blocks.mlp.down"}
    extra = {"kv_bias": {"blocks.attn.variant.k", "blocks.attn.variant.v"}, "sink": {"prefix"},
             "k_bias": {"blocks.attn.variant.k"}, "v_bias": {"blocks.attn.variant.v_bias"},
             "gated": {"blocks.attn.variant.gate"}}
    for variant in VARIANTS:
        config = varied(
            MICRO.model, variant=variant, qkv_bias=True, mlp_bias=True, out_bias=True,
            norm_bias=True,
        )
        found = {name for name in parameters(abstract(config)) if parameter(name).decays}
        assert found == expected | extra.get(variant, set()), variant


def test_decay_is_applied_to_those_alone():
    settings = OptimizerConfig(lr=0.5, final_lr=0.5, warmup=0, weight_decay=0.1)
    optimizer = make_optimizer(dataclasses.replace(MICRO, optimizer=settings))
    params = jax.tree.map(lambda x: jnp.ones(x.shape), parameters(abstract(MICRO.model)))
    still = jax.tree.map(jnp.zeros_like, params)
    update, _ = jax.jit(optimizer.update)(still, optimizer.init(params), params)
    for name in params:
        expected = -0.05 if parameter(name).decays else 0.0
        np.testing.assert_allclose(update[name], expected, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("variant, name", [("kv_bias", "k"), ("sink_logit", "logit")])
def test_extra_keys_have_their_own_learning_rate(variant, name):
    model = varied(MICRO.model, variant=variant)
    params = jax.tree.map(lambda x: jnp.ones(x.shape), parameters(abstract(model)))
    slope = jax.tree.map(jnp.ones_like, params)

    def update(**settings):
        settings = OptimizerConfig(lr=0.5, final_lr=0.5, warmup=0, clip=0.0, **settings)
        optimizer = make_optimizer(dataclasses.replace(MICRO, model=model, optimizer=settings))
        return jax.jit(optimizer.update)(slope, optimizer.init(params), params)[0]

    plain, faster = update(weight_decay=0.1), update(weight_decay=0.1, extra_key_lr=20.0)
    for other in params:
        decay = 0.05 if parameter(other).decays else 0.0
        expected = 20 * 0.5 + decay if other == f"blocks.attn.variant.{name}" else 0.5 + decay
        np.testing.assert_allclose(faster[other], -expected, rtol=1e-5, err_msg=other)
        np.testing.assert_allclose(plain[other], -(0.5 + decay), rtol=1e-5, err_msg=other)


def test_the_gradient_is_clipped():
    settings = dataclasses.replace(MICRO.optimizer, clip=1e-3)
    optimizer = make_optimizer(dataclasses.replace(MICRO, optimizer=settings))
    params = {"embed": jnp.ones((3, 4))}
    _, state = optimizer.update({"embed": jnp.full((3, 4), 7.0)}, optimizer.init(params), params)
    norm = np.linalg.norm(np.asarray(state[1].mu["embed"])) / (1 - MICRO.optimizer.beta1)
    np.testing.assert_allclose(norm, 1e-3, rtol=1e-5)


def test_cosine_is_that_of_the_authors():
    rate = schedule(dataclasses.replace(MICRO, optimizer=OptimizerConfig()))
    for step in (0, 1, 1999, 2000, 2001, 50_000, 300_000, 600_000, 700_000):
        if step < 2000:
            expected = 6e-4 * step / 2000
        else:
            ratio = min((step - 2000) / 598_000, 1)
            expected = 6e-5 + 0.5 * (1 + np.cos(np.pi * ratio)) * (6e-4 - 6e-5)
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5)


def test_constant_then_decay():
    settings = OptimizerConfig(schedule="constant_then_decay", lr=1.0, final_lr=0.1, warmup=10,
                               decay_end=0)
    rate = schedule(dataclasses.replace(MICRO, optimizer=settings, steps=100))
    found = [float(rate(step)) for step in (0, 5, 10, 50, 90, 95, 100, 200)]
    np.testing.assert_allclose(found, [0, 0.5, 1, 1, 1, 0.55, 0.1, 0.1], rtol=1e-6)


def test_loss_is_the_mean_cross_entropy():
    model = jax.tree.map(jnp.asarray, start().model)
    batch = DATA.batch(0)
    logits, _ = model(batch[:, :-1])
    logits = np.asarray(logits, np.float64)
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_probability, batch[:, 1:, None], -1).mean()
    np.testing.assert_allclose(loss(model, batch, MICRO), expected, rtol=1e-6)
    parts = batch.reshape(4, 2, -1)
    np.testing.assert_allclose(validation(model, parts, MICRO)["loss"], expected, rtol=1e-6)
    later = dataclasses.replace(MICRO, loss_from=3)
    expected = -np.take_along_axis(log_probability, batch[:, 1:, None], -1)[:, 3:].mean()
    np.testing.assert_allclose(loss(model, batch, later), expected, rtol=1e-6)


def test_bfloat16_keeps_float32_parameters():
    config = dataclasses.replace(MICRO, model=dataclasses.replace(MICRO.model, dtype="bfloat16"))
    losses, state = run(config, 3)
    assert {x.dtype for x in state.params.values()} == {jnp.dtype("float32")}
    exact, _ = run(MICRO, 3)
    assert 0 < np.abs(losses - exact).max() < 0.02


def test_too_few_devices():
    said = "data=4,fsdp=2,model=2, 16 devices; there are 8; one axis may be -1"
    with pytest.raises(ConfigError, match=said):
        make_mesh(MeshConfig(data=4, fsdp=2, model=2))
