"""The command that follows a study is one that takes the model."""

import dataclasses

import pytest
from nn.test_images import VIT
from tiny_models import LLAMA, varied

from jax_massact.cli.following import following

ENCODER = varied(VIT, hidden=512)  # of tiny MLPs there are no neurons to choose from
PLAIN = dataclasses.replace(ENCODER, registers=0)


@pytest.mark.parametrize(("model", "expected"), [
    (LLAMA, ["intervene", "explain", "fold", "quantize", None]),
    # What has k' and v' already is not folded.
    (LLAMA.with_attention(variant="kv_bias"),
     ["intervene", "explain", "quantize", "quantize", None]),
])
def test_after_each_study_of_a_model_of_text(model, expected):
    studies = ("probe", "intervene", "explain", "fold", "quantize")
    assert [following(name, model) for name in studies] == expected
    assert following("registers", model) is None


@pytest.mark.parametrize(("model", "expected"), [
    (ENCODER, ["intervene", "registers", "fold", None]),
    # There are no registers to fold.
    (PLAIN, ["intervene", "registers", None, None]),
    (PLAIN.with_attention(variant="kv_bias"), ["intervene", None, None, None]),
])
def test_after_each_study_of_an_encoder_of_images(model, expected):
    studies = ("probe", "intervene", "registers", "fold")
    assert [following(name, model) for name in studies] == expected
