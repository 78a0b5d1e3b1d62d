"""Makes the reference numbers of image encoders with PyTorch, transformers and timm.

    pip install -e '.[parity]'
    python tests/parity/make_encoder_fixtures.py [FAMILY ...]

Writes `encoders/<family>.npz` beside this file. Weights and images are drawn by NumPy
(`random_weights.py`) and not stored. A file holds

* `cases`: JSON, a list of `name`, `config`, `seed` and `tensors` (names and shapes);
* `hidden_<i>` float32 [L+1, S, D] of case i: what enters the first block, then the residual stream
  after each block; `features_<i>` [E]; `logits_<i>` [V] where it has a head;
* `versions`: the libraries that computed them.
"""

# Torch is installed only where fixtures are made.
# pyright: reportMissingImports=false

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from encoder_cases import CASES, Case
from random_weights import draw, image
from safetensors import safe_open
from safetensors.numpy import save_file

OUT = Path(__file__).parent / "encoders"


def timm_model(case: Case) -> Any:
    """timm's VisionTransformer with the arguments of a case."""
    import timm.layers
    from timm.models.vision_transformer import VisionTransformer

    arguments = dict(case.arguments or {})
    norm = functools.partial(timm.layers.LayerNorm, eps=arguments.pop("eps", 1e-6))
    if arguments.pop("swiglu", False):
        arguments |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return VisionTransformer(norm_layer=norm, **arguments)


def fresh(case: Case, folder: Path) -> Any:
    """The model with weights of its own."""
    if case.oracle == "timm":
        return timm_model(case)
    (folder / "config.json").write_text(json.dumps(case.config))
    kind = getattr(transformers, case.oracle)
    return kind(kind.config_class.from_pretrained(folder))


def shapes(case: Case) -> dict[str, list[int]]:
    """Names and shapes of its tensors."""
    with tempfile.TemporaryDirectory() as folder:
        model = fresh(case, Path(folder))
        if case.oracle == "timm" or case.live:
            return {name: list(x.shape) for name, x in model.state_dict().items()}
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def read(case: Case, arrays: dict[str, np.ndarray]) -> Any:
    """The model with these weights, none of which is left over or missing."""
    with tempfile.TemporaryDirectory() as folder:
        model = fresh(case, Path(folder))
        if case.oracle == "timm" or case.live:
            model.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()})
            return model.eval()
        save_file(arrays, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        kind = getattr(transformers, case.oracle)
        model, info = kind.from_pretrained(
            folder, attn_implementation="eager", output_loading_info=True
        )
    left = {key: info[key] for key in ("missing_keys", "unexpected_keys") if info[key]}
    if left:
        raise AssertionError(f"{case.oracle}: {left}")
    return model.eval()


def tower(model: Any) -> Any:
    """The encoder of images inside a model that has more."""
    inner = getattr(model, "vision_model", model)
    return getattr(inner, "vit", inner)


@torch.no_grad()
def run(case: Case, model: Any, pixels: np.ndarray, depth: int) -> dict[str, np.ndarray]:
    """Streams by hooks on the blocks, features, logits."""
    lists = [m for m in tower(model).modules()
             if isinstance(m, torch.nn.ModuleList | torch.nn.Sequential) and len(m) == depth]
    blocks = next(x for x in lists if type(x[0]).__name__.endswith(("Layer", "Block")))
    stream = []
    hooks = [blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: stream.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )]
    hooks += [block.register_forward_hook(
        lambda _, args, out: stream.append(out[0] if isinstance(out, tuple) else out)
    ) for block in blocks]
    x, found = torch.from_numpy(pixels).permute(0, 3, 1, 2), {}
    if case.oracle == "timm":
        last = model.forward_features(x)
        found["features"] = model.forward_head(last, pre_logits=True)
        if model.num_classes:
            found["logits"] = model.forward_head(last)
    else:
        found = transformers_output(case, model, x)
    for hook in hooks:
        hook.remove()
    # Some are run twice, for their features and for their logits.
    hidden = torch.stack(stream[: depth + 1])[:, 0].numpy()
    return {"hidden": hidden} | {kind: value[0].numpy() for kind, value in found.items()}


def transformers_output(case: Case, model: Any, x: Any) -> dict[str, Any]:
    """Features as this package pools them, and logits."""
    name, arguments = case.oracle, {}
    kinds = ("ViTModel", "ViTForImage", "ViTMAE", "CLIP", "Siglip")
    if name.startswith(kinds):
        arguments["interpolate_pos_encoding"] = True
    if name.startswith("ViTMAE"):
        # Even a mask ratio of 0 shuffles the patches, in the order of the noise.
        patches = x.shape[2] * x.shape[3] // case.config["patch_size"] ** 2
        arguments["noise"] = torch.arange(patches, dtype=torch.float32)[None]
        model = getattr(model, "vit", model)
    if name == "CLIPModel":
        vision = model.vision_model(x, interpolate_pos_encoding=True)
        return {"features": vision.pooler_output,
                "logits": model.visual_projection(vision.pooler_output)}
    if name == "SiglipForImageClassification":
        last = model.vision_model(x, interpolate_pos_encoding=True).last_hidden_state
        return {"features": last.mean(1), "logits": model(x, interpolate_pos_encoding=True).logits}
    inner = model
    for part in ("vit", "dinov2", "dinov2_with_registers", "vision_model"):
        inner = getattr(inner, part, inner)
    out = inner(x, **arguments)
    registers = case.config.get("num_register_tokens", 4 * ("Registers" in name))
    front, last = 1 + registers, out.last_hidden_state
    if "Dinov2" in name:
        features = torch.cat([last[:, 0], last[:, front:].mean(1)], 1)
    elif name.startswith(("CLIP", "Siglip")):
        features = out.pooler_output
    else:
        features = last[:, 0]
    found = {"features": features}
    if "ForImageClassification" in name:
        found["logits"] = model(x, **arguments).logits
    if name == "CLIPVisionModelWithProjection":
        found["logits"] = model(x, **arguments).image_embeds
    return found


def make(family: str) -> None:
    """Writes the file of one family."""
    cases, arrays = [], {}
    for seed, (name, case) in enumerate(CASES[family].items()):
        sizes = shapes(case)
        config = case.config.get("vision_config", case.config)
        depth = config.get("num_hidden_layers", 2)
        pixels = image(case.size, config.get("num_channels", 3), seed)
        found = run(case, read(case, draw(sizes, seed)), pixels, depth)
        print(family, name, {k: v.shape for k, v in found.items()}, np.abs(found["hidden"]).max())
        cases.append({"name": name, "config": case.config, "seed": seed, "tensors": sizes})
        arrays |= {f"{kind}_{seed}": value for kind, value in found.items()}
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    if family == "timm":
        import timm

        versions = f"torch {torch.__version__}, timm {timm.__version__}"
    np.savez_compressed(
        OUT / f"{family}.npz", cases=json.dumps(cases), versions=versions, **arrays
    )


def main() -> None:
    """Makes the files anew."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    for family in sys.argv[1:] or CASES:
        make(family)


if __name__ == "__main__":
    main()
