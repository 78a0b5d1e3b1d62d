"""Images as tokens: patches, positions of another grid, full attention of odd lengths, pooling."""

import in_numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import operands
from tiny_models import decoder, varied

from jax_massact.errors import ConfigError
from jax_massact.nn import attention
from jax_massact.nn.acts import Mask
from jax_massact.nn.attention import attend
from jax_massact.nn.block_config import AttentionConfig, BlockConfig, MLPConfig, NormConfig
from jax_massact.nn.config import EmbedConfig, HeadConfig, ModelConfig, PatchConfig
from jax_massact.nn.extra import Extra
from jax_massact.nn.fused import vendor
from jax_massact.nn.fused.vendor import Span
from jax_massact.nn.patches import RESAMPLE, _matrix
from jax_massact.nn.transformer import parameters

_NORM = NormConfig(kind="layer", bias=True)
VIT = ModelConfig(
    depth=2, width=16, context_length=4, registers=2, final_norm=_NORM,
    embed=EmbedConfig(vocab_size=5, positions="learned", patches=PatchConfig(size=2, grid=(2, 2))),
    block=BlockConfig(
        attention=AttentionConfig(
            heads=2, kv_heads=2, head_dim=8, position="none", causal=False, qkv_bias=True,
        ),
        mlp=MLPConfig(hidden=12, activation="quick_gelu", gated=False, bias=True), norm=_NORM,
        layer_scale=True,
    ),
    head=HeadConfig(bias=True, pool="cls"),
)


def images(batch=2, size=(4, 4), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


def test_tokens_are_cls_registers_and_patches_row_by_row():
    model, pixels = decoder(VIT), images()
    embedded = in_numpy.jit(lambda pixels: model.embedded(pixels))
    x, own = embedded(pixels), parameters(model)
    normal = (np.float64(pixels) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(x[1, 0], own["cls"] + own["cls_position"], atol=1e-6)
    np.testing.assert_allclose(x[:, 1:3], np.stack([own["prefix"]] * 2), atol=1e-6)
    # The patch in the second row and first column: channels first, then rows and columns.
    patch = normal[1, 2:4, 0:2].transpose(2, 0, 1).reshape(-1)
    expected = patch @ np.float64(own["patches"]) + own["patches_bias"] + own["positions"][2]
    np.testing.assert_allclose(x[1, 3 + 2], expected, atol=1e-5)
    # Floats are taken as normalized.
    np.testing.assert_allclose(embedded(np.float32(normal)), x, atol=1e-5)


def test_every_token_sees_every_other_and_layer_scale_is_part_of_what_is_added():
    model = decoder(VIT)
    run = in_numpy.jit(lambda images: model.residual(images, tap=lambda acts: acts))
    x, acts = run(images())
    assert x.shape == (2, 7, 16) and acts.mask.prefix == 3 and not acts.mask.causal
    np.testing.assert_allclose(acts.resid_pre + acts.attn_out, acts.resid_mid, atol=1e-5)
    np.testing.assert_allclose(acts.resid_mid + acts.mlp_out, acts.resid_post, atol=1e-5)
    own = {name: np.float64(value) for name, value in parameters(model).items()}
    up = np.float64(acts.mlp_in) @ own["blocks.mlp.up"][:, None] + own["blocks.mlp.up_bias"][
        :, None, None
    ]
    hidden = up / (1 + np.exp(-1.702 * up))
    added = hidden @ own["blocks.mlp.down"][:, None] + own["blocks.mlp.down_bias"][:, None, None]
    gain = own["blocks.mlp_gain"][:, None, None]
    np.testing.assert_allclose(acts.mlp_out, added * gain, atol=1e-4)
    changed = images()
    changed[:, 2:, 2:] += 90  # the last patch
    moved = np.abs(run(changed)[1].resid_post[0] - acts.resid_post[0]).max(-1)
    assert (moved > 1e-6).all()


def test_logits_and_features():
    pooled = [decoder(varied(VIT, **{"head.pool": pool})) for pool in ("cls_mean", "mean_norm")]

    @in_numpy.jit
    def run(x):
        model = decoder(VIT)
        normed = model.final_norm(x)
        mean = model.final_norm(x[:, 3:].mean(1))
        return normed, mean, model.features(x), model.logits(x), *[m.features(x) for m in pooled]

    x = np.random.default_rng(0).standard_normal((2, 7, 16)).astype(np.float32)
    normed, mean, features, logits, both, mean_norm = map(np.asarray, run(x))
    own = parameters(decoder(VIT))
    np.testing.assert_allclose(features, normed[:, 0], atol=1e-5)
    np.testing.assert_allclose(logits, normed[:, 0] @ own["head"] + own["head_bias"], atol=1e-4)
    np.testing.assert_allclose(both, np.hstack([normed[:, 0], normed[:, 3:].mean(1)]), atol=1e-5)
    np.testing.assert_allclose(mean_norm, mean, atol=1e-5)


@pytest.mark.parametrize(("rule", "new", "row", "weights"), [
    # torch 2.13: `interpolate` of the unit vectors of 4 positions.
    ("exact", 6, 0, [1.0868056, -0.0868056, 0, 0]),
    ("exact", 6, 1, [0.5, 0.59375, -0.09375, 0]),
    ("antialias", 3, 0, [0.7528604, 0.3043478, -0.0572082, 0]),
    ("antialias", 6, 0, [1.0657895, -0.0657895, 0, 0]),
    ("offset", 6, 0, [1.0884797, -0.0884797, 0, 0]),
    ("offset", 6, 5, [0, 0, -0.0637937, 1.0637937]),
])  # fmt: skip
def test_positions_are_resampled_as_torch_does(rule, new, row, weights):
    matrix = _matrix(4, new, RESAMPLE[rule])
    np.testing.assert_allclose(matrix[row], weights, atol=2e-7)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


class Padding(vendor.Cudnn):
    """A kernel of full attention that takes even lengths only, written out."""

    def unfit(self, q, mask):
        return None

    def forward(self, q, k, v, span):
        assert q.shape[1] % 2 == 0 and not span.causal
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
        seen = jnp.arange(k.shape[1]) < (span.tokens or k.shape[1])
        logits = jnp.where(seen, logits, -jnp.inf)
        out = jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), v)
        return out, jax.nn.logsumexp(logits, -1)

    def backward(self, q, k, v, out, lse, cotangent, span):
        # Given the whole log-sum-exp and result, as the merge of extra keys asks for.
        seen = jnp.arange(k.shape[1]) < (span.tokens or k.shape[1])
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
        p = jnp.where(seen, jnp.exp(logits - lse[..., None]), 0)
        dp = jnp.einsum("btnh,bsnh->bnts", cotangent, v)
        row = jnp.einsum("btnh,btnh->bnt", out, cotangent)[..., None]
        ds = p * (dp - row) * q.shape[-1] ** -0.5
        # Rows of padding have no cotangent.
        return (jnp.einsum("bnts,bsnh->btnh", ds, k), jnp.einsum("bnts,btnh->bsnh", ds, q),
                jnp.einsum("bnts,btnh->bsnh", p, cotangent))


@pytest.mark.parametrize("extra", [False, True])
def test_padding_of_odd_lengths_leaks_nothing(monkeypatch, extra):
    monkeypatch.setitem(attention.KERNELS, "cudnn", Padding())
    x, cotangent = operands(2, 7, 2, 2, 8)
    mask = Mask(scale=8**-0.5, causal=False)

    def run(implementation):
        def f(x):
            own = Extra(key=x["key"], value=x["value"]) if extra else None
            return attend(x["q"], x["k"], x["v"], mask, extra=own, implementation=implementation)

        out, pull = jax.vjp(jax.jit(f), x)
        return out, pull(cotangent)[0]

    for a, b in zip(*(jax.tree.leaves(run(name)) for name in ("cudnn", "xla")), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_cudnn_is_told_which_tokens_are_padding():
    q = jnp.zeros((3, 8, 2, 8))
    kind = lambda span: vendor._cudnn_settings(q, span)["mask_type"].name
    assert kind(Span()) == "CAUSAL" and kind(Span(causal=False)) == "NO_MASK"
    assert kind(Span(causal=False, tokens=7)) == "PADDING"
    for lengths in vendor._lengths(q, Span(causal=False, tokens=7)):
        np.testing.assert_array_equal(lengths, [7, 7, 7])
    assert all(x.size == 0 for x in vendor._lengths(q, Span()))


@pytest.mark.parametrize(("shape", "dtype"), [
    ((2, 5, 4, 3), np.uint8), ((2, 4, 4, 1), np.float32), ((2, 0, 4, 3), np.uint8),
])
def test_what_is_no_image_is_refused(shape, dtype):
    with pytest.raises(ValueError, match=r"expected: \[images, rows, columns, 3\].* of 2$"):
        decoder(VIT).residual(np.zeros(shape, dtype))


@pytest.mark.parametrize(("changes", "message"), [
    ({"head.pool": None}, "head.pool is None"), ({"context_length": 5}, "context_length is 5"),
    ({"position": "rope"}, "'rope'; expected with images: 'rope_2d'"),
    ({"position": "rope_2d", "head_dim": 6}, "head_dim is 6; expected with 'rope_2d'"),
    ({"embed.patches.cls": False}, "cls_position is True; expected without"),
    ({"positions": "none"}, "cls_position is True; expected with embed.positions"),
    ({"embed.patches.mean": (0.5,)}, "patches.mean is"), ({"embed.patches": None}, "embed.patches"),
])
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        varied(VIT, **changes)
    assert message in str(error.value)
