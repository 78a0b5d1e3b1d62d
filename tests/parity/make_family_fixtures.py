"""Makes the reference numbers of the families with PyTorch and transformers.

    pip install -e '.[parity]'
    python tests/parity/make_family_fixtures.py [FAMILY ...]

Writes `families/<family>.npz` beside this file, of all families or of those that are named. Weights
are drawn by NumPy (`random_weights.py`) and not stored. A file holds

* `cases`: JSON, a list of `name`, `config` (what `config.json` states), `seed` and `tensors`, the
  names and shapes that transformers gives the folder's tensors;
* `logits_<i>` float32 [T, V] and `hidden_<i>` float32 [L+1, T, D] of case i: what enters the first
  block, then the residual stream after each block;
* `versions`: the libraries that computed them.
"""

# Torch is installed only where fixtures are made.
# pyright: reportMissingImports=false

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from family_cases import FAMILIES, TOKENS, VOCAB, Config
from random_weights import draw, tokens
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

OUT = Path(__file__).parent / "families"
LARGEST = 200_000
# Another precision may be off by so much of the largest value.
SAME_WITHIN = 5e-5


def stated(config: Config, folder: Path) -> Any:
    """The configuration that transformers reads from a `config.json`."""
    (folder / "config.json").write_text(json.dumps(config))
    return AutoConfig.from_pretrained(folder)


def shapes(config: Config) -> dict[str, list[int]]:
    """Names and shapes of the tensors that transformers saves."""
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(stated(config, Path(folder))).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def read(config: Config, arrays: dict[str, np.ndarray], attention: str, dtype: Any) -> Any:
    """The model of a folder with these weights, none of which is left over or missing."""
    with tempfile.TemporaryDirectory() as folder:
        stated(config, Path(folder))
        save_file(arrays, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        # Grouped matmuls have no float64.
        plain = {"experts_implementation": "eager"} if "num_experts_per_tok" in config else {}
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, output_loading_info=True, **plain
        )
    left = {key: info[key] for key in ("missing_keys", "unexpected_keys") if info[key]}
    if left:
        raise AssertionError(f"{config['model_type']}: {left}")
    return model.eval()


@torch.no_grad()
def run(model: Any, ids: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [T, V] and the residual stream [L+1, T, D], by hooks on the blocks."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]
    blocks, stream = lists[0], []

    def before(_, args, kwargs):
        stream.append(args[0] if args else kwargs["hidden_states"])

    def after(_, args, output):
        del args
        stream.append(output[0] if isinstance(output, tuple) else output)

    hooks = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [block.register_forward_hook(after) for block in blocks]
    logits = model(torch.from_numpy(ids).long(), use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits[0].numpy(), torch.stack(stream)[:, 0].numpy()


def make(name: str) -> None:
    """Writes the file of one family."""
    family, cases, arrays = FAMILIES[name], [], {}
    for seed, case in enumerate(family.cases):
        config = family.config(case)
        sizes = shapes(config)
        weights, ids = draw(sizes, seed), tokens(TOKENS, VOCAB, seed)
        depth = stated_depth(config)
        model = read(config, weights, family.attention, torch.float32)
        logits, hidden = run(model, ids, depth)
        exact = run(read(config, weights, family.attention, torch.float64), ids, depth)
        pairs = zip((logits, hidden), exact, strict=True)
        off = max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)
        print(f"{name}, {case}: within {off:.0e}, logits up to {np.abs(logits).max():.1f}")
        if not off < SAME_WITHIN:
            raise AssertionError(f"{name}, {case}: float32 is off by {off:g}")
        cases.append({"name": case, "config": config, "seed": seed, "tensors": sizes})
        arrays |= {f"logits_{seed}": logits, f"hidden_{seed}": hidden}
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    path = OUT / f"{name}.npz"
    np.savez_compressed(path, cases=json.dumps(cases), versions=versions, **arrays)
    if path.stat().st_size > LARGEST:
        raise AssertionError(f"{path} has {path.stat().st_size:,} bytes; expected: {LARGEST:,}")


def stated_depth(config: Config) -> int:
    """The number of blocks."""
    names = ("num_hidden_layers", "n_layer", "n_layers")
    return next(config[name] for name in names if name in config)


def main() -> None:
    """Makes the files anew."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    for name in sys.argv[1:] or FAMILIES:
        make(name)


if __name__ == "__main__":
    main()
