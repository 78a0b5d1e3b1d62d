"""Models that also take images: their text part is read as the model that it is."""

import json

import numpy as np
import pytest
from parity.family_cases import FAMILIES, Config
from parity.random_weights import draw
from safetensors.numpy import save_file

from jax_massact.errors import WeightsError
from jax_massact.loading import open_checkpoint
from jax_massact.nn.transformer import parameters

TEXT = FAMILIES["gemma3_text"].config("plain")
DEPTH = TEXT["num_hidden_layers"]


def names(config: Config) -> dict[str, tuple[int, ...]]:
    """The tensors of the text part, by the names that it has alone."""
    D, F, H = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    N, K = config["num_attention_heads"], config["num_key_value_heads"]
    block = {
        "self_attn.q_proj": (N * H, D), "self_attn.k_proj": (K * H, D),
        "self_attn.v_proj": (K * H, D), "self_attn.o_proj": (D, N * H), "self_attn.q_norm": (H,),
        "self_attn.k_norm": (H,), "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F), "input_layernorm": (D,), "post_attention_layernorm": (D,),
        "pre_feedforward_layernorm": (D,), "post_feedforward_layernorm": (D,),
    }
    layers = {f"model.layers.{n}.{x}.weight": s for n in range(DEPTH) for x, s in block.items()}
    return {"model.embed_tokens.weight": (37, D), "model.norm.weight": (D,)} | layers


def write(folder, config, arrays):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays, folder / "model.safetensors")
    return open_checkpoint(folder)


@pytest.mark.parametrize("renamed", [
    lambda name: f"language_model.{name}",  # as it is published
    lambda name: name.replace("model.", "model.language_model.", 1),  # as in memory
])
def test_gemma_3_with_images(tmp_path, renamed):
    arrays = draw(names(TEXT), 0)
    alone = write(tmp_path / "alone", TEXT, arrays)
    both = {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "vision_config": {"hidden_size": 8},
        "text_config": {n: x for n, x in TEXT.items() if n not in ("architectures", "model_type")},
    }
    images = {"vision_tower.embeddings.patch_embedding.bias": np.zeros(8, np.float32),
              "multi_modal_projector.mm_soft_emb_norm.weight": np.ones(8, np.float32)}
    wrapped = {renamed(name): x for name, x in arrays.items()}
    found = write(tmp_path / "both", both, wrapped | images)
    assert found.family == "gemma3_text" and found.config == alone.config
    wanted = parameters(alone.load_model())
    for name, array in parameters(found.load_model()).items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


def test_a_text_part_that_is_no_object(tmp_path):
    with pytest.raises(WeightsError, match="text_config is 3; expected: an object"):
        write(tmp_path / "both", {"model_type": "gemma3", "text_config": 3}, {})
