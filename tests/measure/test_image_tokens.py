"""What is measured of the tokens of images, against NumPy."""

import in_numpy
import jax
import numpy as np
from nn.test_images import VIT, images
from tiny_models import decoder, varied

from jax_massact.measure.image_tokens import neighbour_cosine, token_tap
from jax_massact.mesh import make_mesh, parameter_sharding
from jax_massact.nn.config import EmbedConfig, PatchConfig
from jax_massact.nn.parameters import is_stacked, parameter
from jax_massact.nn.transformer import from_parameters, parameters


def test_norms_and_attention():
    model = decoder(varied(VIT, variant="kv_bias"))

    def tap(acts):
        return token_tap(acts), acts.q, acts.k, acts.resid_post

    found, q, k, post = in_numpy.jit(lambda m, x: m.residual(x, tap=tap)[1])(model, images())
    np.testing.assert_allclose(found.norm, np.linalg.norm(post, axis=-1), rtol=1e-5)
    own = parameters(model)["blocks.attn.variant.k"]  # [L 1 K H]
    for layer in range(2):
        keys = np.concatenate([np.repeat(own[layer][None], 2, 0), k[layer]], axis=1)
        logits = np.einsum("btnh,bsnh->bnts", np.float64(q[layer]), keys) / 8**0.5
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        weights = weights.mean(1)  # over heads
        np.testing.assert_allclose(found.front[layer], weights[:, :3, 1:], atol=1e-5)
        np.testing.assert_allclose(found.patches[layer], weights[:, 3:, 1:].mean(1), atol=1e-5)
        np.testing.assert_allclose(found.extra[layer, :, :3], weights[:, :3, 0], atol=1e-5)
        np.testing.assert_allclose(found.extra[layer, :, 3], weights[:, 3:, 0].mean(1), atol=1e-5)


def test_cosine_to_the_patches_around():
    plain = PatchConfig(size=2, grid=(2, 2), cls_position=False)
    config = varied(VIT, embed=EmbedConfig(vocab_size=5, patches=plain))
    model, pixels = decoder(config), images(size=(4, 6))
    x = np.float64(model.embedded(pixels)[:, 3:]).reshape(2, 2, 3, -1)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    cosine = np.asarray(neighbour_cosine(model, pixels)).reshape(2, 2, 3)
    around = lambda b, places: np.mean([x[b, 0, 1] @ x[b, r, c] for r, c in places])
    np.testing.assert_allclose(cosine[1, 0, 1], around(1, [(0, 0), (0, 2), (1, 1)]), atol=1e-5)
    corner = np.mean([x[0, 1, 2] @ x[0, 0, 2], x[0, 1, 2] @ x[0, 1, 1]])
    np.testing.assert_allclose(cosine[0, 1, 2], corner, atol=1e-5)


def test_a_mesh_changes_nothing():
    config = varied(VIT, **{"head.pool": "map"})
    model, pixels = decoder(config), images(2)

    def run(model, pixels):
        x, found = model.residual(pixels, tap=token_tap)
        return model.logits(x), found, neighbour_cosine(model, pixels)

    alone, mesh = in_numpy.jit(run)(model, pixels), make_mesh(2, 1, 2, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        place = lambda name, x: jax.device_put(x, parameter_sharding(
            mesh, parameter(name).letters, x.shape, stacked=is_stacked(name)
        ))
        arrays = {name: place(name, x) for name, x in parameters(model).items()}
        together = jax.jit(run)(from_parameters(config, arrays), pixels)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1, np.abs(a).max()))
