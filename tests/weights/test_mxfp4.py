"""MXFP4 number by number, and gpt-oss as it is published in it: folders and GGUF files."""

import json

import gguf
import numpy as np
import pytest
from parity import gguf_writer
from parity.family_cases import FAMILIES
from parity.random_weights import draw
from safetensors.numpy import save_file

from jax_massact.errors import WeightsError
from jax_massact.loading import open_checkpoint
from jax_massact.nn.transformer import parameters
from jax_massact.weights.folder import open_folder

E, ROWS, COUNT = 2, 3, 2


def plain(blocks, scales):
    """Every number of a matrix by the standard's words: sign, two bits of exponent, one more."""
    *front, rows, count, _ = blocks.shape
    out = np.zeros((*front, rows, count * 32))
    for place in np.ndindex(*front, rows, count):
        for i in range(32):
            byte = int(blocks[place][i // 2])
            bits = byte & 15 if i % 2 == 0 else byte >> 4
            exponent, mantissa = bits >> 1 & 3, bits & 1
            size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
            sign = -1 if bits & 8 else 1
            column = place[-1] * 32 + i
            out[(*place[:-1], column)] = sign * size * 2.0 ** (int(scales[place]) - 127)
    return np.ascontiguousarray(out.swapaxes(-1, -2))


def drawn(seed, *shape):
    """Blocks and scales of some matrices [..., rows, blocks]."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(256, size=(*shape, 16), dtype=np.uint8)
    return blocks, rng.integers(122, 127, size=shape, dtype=np.uint8)


def test_every_number_is_that_of_the_standard(tmp_path):
    blocks, scales = drawn(0, E, ROWS, COUNT)
    blocks.reshape(-1)[:16] = np.arange(16) * 17  # each of the sixteen, in both halves
    save_file({"x_blocks": blocks, "x_scales": scales}, tmp_path / "model.safetensors")
    (tensor,) = open_folder(tmp_path).values()
    assert (tensor.name, tensor.dtype, tensor.shape) == ("x", "MXFP4", (E, 32 * COUNT, ROWS))
    np.testing.assert_array_equal(tensor.read().astype(np.float64), plain(blocks, scales))


def test_blocks_and_scales_that_do_not_fit_are_refused(tmp_path):
    blocks, scales = drawn(0, E, ROWS, COUNT)
    save_file({"x_blocks": blocks, "x_scales": scales[:, :2]}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"x_blocks.*expected: \[2, 2, 2, 16\], from its scales"):
        open_folder(tmp_path)
    floats = blocks.astype(np.float32)
    save_file({"x_blocks": floats, "x_scales": scales}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="type F32; expected: U8, blocks of MXFP4"):
        open_folder(tmp_path)


def test_gpt_oss_as_it_is_published(tmp_path):
    family = FAMILIES["gpt_oss"]
    config = family.config("plain") | {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_local_experts": E,
    }
    D, F = config["hidden_size"], config["intermediate_size"]
    heads, key_heads, H = 4, 2, 8
    block = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (37, D), "lm_head.weight": (37, D), "model.norm.weight": (D,),
        f"{block}input_layernorm.weight": (D,), f"{block}post_attention_layernorm.weight": (D,),
        f"{block}self_attn.sinks": (heads,), f"{block}mlp.router.weight": (E, D),
        f"{block}mlp.router.bias": (E,), f"{block}mlp.experts.gate_up_proj_bias": (E, 2 * F),
        f"{block}mlp.experts.down_proj_bias": (E, D),
        f"{block}self_attn.o_proj.weight": (D, heads * H), f"{block}self_attn.o_proj.bias": (D,),
    }
    for x, count in (("q", heads), ("k", key_heads), ("v", key_heads)):
        shapes[f"{block}self_attn.{x}_proj.weight"] = (count * H, D)
        shapes[f"{block}self_attn.{x}_proj.bias"] = (count * H,)
    arrays, packed = draw(shapes, 0), {}
    for seed, (name, rows) in enumerate((("gate_up_proj", 2 * F), ("down_proj", D))):
        blocks, scales = drawn(seed, E, rows, 1)
        packed |= {f"{block}mlp.experts.{name}_blocks": blocks,
                   f"{block}mlp.experts.{name}_scales": scales}
        arrays[f"{block}mlp.experts.{name}"] = plain(blocks, scales).astype(np.float32)
    quantized = {"quantization_config": {"quant_method": "mxfp4"}}
    others = {name: x for name, x in arrays.items() if not name.endswith(("up_proj", "down_proj"))}
    for name, stated, tensors in (
        ("plain", config, arrays), ("packed", config | quantized, others | packed)
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(stated))
        save_file(tensors, tmp_path / name / "model.safetensors")
    # Numbers that MXFP4 holds stay what they are.
    as_mxfp4 = lambda name, x: gguf.GGMLQuantizationType.MXFP4 if "_exps.weight" in name else None
    gguf_writer.write(config, arrays, tmp_path / "model.gguf", as_mxfp4)
    wanted = parameters(open_checkpoint(tmp_path / "plain").load_model())
    for name in ("packed", "model.gguf"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert "MXFP4" in checkpoint.stored_dtypes
        for key, array in parameters(checkpoint.load_model()).items():
            np.testing.assert_array_equal(array, wanted[key], err_msg=f"{name}: {key}")


def test_other_quantized_folders_are_refused(tmp_path):
    config = FAMILIES["gpt_oss"].config("plain")
    for method in ({"bits": 4}, {"quant_method": "gptq"}, "mxfp4"):
        stated = config | {"quantization_config": method}
        (tmp_path / "config.json").write_text(json.dumps(stated))
        with pytest.raises(WeightsError, match="expected: nothing, or MXFP4"):
            open_checkpoint(tmp_path)
