"""The same statistics the way the paper's authors compute them: PyTorch, hidden states on the host.

    python jax_massact/bench/reference_probe.py --gguf MODEL.gguf --tokens TOKENS.npy --out OUT.json
    python jax_massact/bench/reference_probe.py --folder MODEL --tokens TOKENS.npy --out OUT.json

A script on its own, for comparing speed and numbers. It imports nothing of this package, so that it
runs in an environment with torch, transformers, accelerate and gguf, and without JAX. Each sequence
goes through the model alone with `output_hidden_states=True`; every block's output is copied to the
host, and its magnitudes are sorted whole, as the authors' repository does for each layer.

The statistics carry the names and meanings of `LayerStats` in `jax_massact/probe/result.py`: layers
count from 0 and mean the residual stream after that block.
"""

# Torch is installed only where this is run.
# pyright: reportMissingImports=false, reportMissingModuleSource=false

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

TOP_K = 5
QUANTILES = (0.9, 0.99)
COUNT_ABOVE = (10, 100, 1000)
NEEDS = "torch, transformers, accelerate and gguf"


class Stopwatch:
    """Adds up the seconds spent in named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Books the time since the last lap under `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now


def load(path: Path) -> Any:
    """The model of a GGUF file, dequantized to float32."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


def load_offloaded(folder: Path, dtype: str) -> Any:
    """The model of a folder whose blocks stay on the disk until each is run."""
    import accelerate
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder)
    with accelerate.init_empty_weights():
        shapes = transformers.AutoModelForCausalLM.from_config(config)
    places = {name: "cpu" for name, _ in shapes.named_children()}
    base = shapes.base_model_prefix
    del places[base]
    for name, child in getattr(shapes, base).named_children():
        if name in ("layers", "h"):
            places |= {f"{base}.{name}.{i}": "disk" for i in range(len(child))}
        else:
            places[f"{base}.{name}"] = "cpu"
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), device_map=places, offload_folder=str(folder / ".off")
    ).eval()


def blocks(model: Any) -> Any:
    """The transformer blocks, in order."""
    decoder = model.base_model
    return decoder.h if hasattr(decoder, "h") else decoder.layers


def forward(model: Any, tokens: Any) -> list[Any]:
    """The residual stream after each block: L tensors [T, D], for tokens [T]."""
    import torch

    # transformers puts the last entry of `hidden_states` through the final norm; this is before it.
    last: list[Any] = []
    handle = blocks(model)[-1].register_forward_hook(lambda *call: last.append(call[-1]))
    with torch.no_grad():
        output = model(
            torch.as_tensor(tokens)[None].long(), output_hidden_states=True, use_cache=False
        )
    handle.remove()
    # The first entry is the embedding.
    return [hidden[0] for hidden in (*output.hidden_states[1:-1], last[0])]


def quantile(descending: Any, q: float) -> float:
    """The q-quantile of values sorted from the largest, interpolated linearly as NumPy does."""
    rank = (1 - q) * (len(descending) - 1)
    upper = int(rank)
    lower = min(upper + 1, len(descending) - 1)
    above, below = float(descending[upper]), float(descending[lower])
    return above + (below - above) * (rank - upper)


def layer_stats(layer: int, hidden: Any) -> dict[str, Any]:
    """Statistics of one block's output, float32 [T, D], on the host."""
    import torch

    magnitude = hidden.abs()
    values, places = torch.sort(magnitude.flatten(), descending=True)
    top = []
    for place in places[:TOP_K].tolist():
        position, dim = divmod(place, hidden.shape[1])
        value = float(hidden[position, dim])
        top.append({"value": value, "magnitude": abs(value), "position": position, "dim": dim})
    centred = hidden.double() - hidden.double().mean()
    above = {str(limit): magnitude > limit for limit in COUNT_ABOVE}
    return {
        "layer": layer,
        "top": top,
        "median": quantile(values, 0.5),
        "quantile": {str(q): quantile(values, q) for q in QUANTILES},
        "kurtosis": float((centred**4).mean() / (centred**2).mean() ** 2),
        "max": float(values[0]),
        "count_above": {limit: int(over.sum()) for limit, over in above.items()},
        "dims_above": {limit: int(over.any(0).sum()) for limit, over in above.items()},
        "tokens_above": {limit: int(over.any(1).sum()) for limit, over in above.items()},
    }


def read_tokens(path: Path, vocab_size: int) -> Any:
    """Token ids, integers [S, T] within the vocabulary; ends the script when they are not."""
    import numpy as np

    tokens = np.load(path)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
        sys.exit(f"{path} holds {tokens.dtype} {list(tokens.shape)}; expected integers [S, T]")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        found = f"ids {tokens.min()} to {tokens.max()}"
        sys.exit(f"{path} holds {found}; expected: 0 to {vocab_size - 1}")
    return tokens


def probe(
    model_path: Path, tokens_path: Path, threads: int, dtype: str | None = None
) -> dict[str, Any]:
    """Runs every sequence; returns the seconds of each stage and the first one's statistics.

    Args:
      model_path: a GGUF file, or, with a `dtype`, a folder whose blocks stay on the disk.
    """
    watch = Stopwatch()
    try:
        import accelerate
        import gguf as gguf_package  # noqa: F401
        import psutil  # comes with accelerate
        import torch
        import transformers
    except ImportError as error:
        sys.exit(f"no module {error.name!r} in {sys.executable}; this script needs {NEEDS}")
    torch.set_num_threads(threads)
    watch.lap("import")
    model = load(model_path) if dtype is None else load_offloaded(model_path, dtype)
    watch.lap("load")
    tokens = read_tokens(tokens_path, model.config.vocab_size)
    first: list[dict[str, Any]] = []
    for sequence in tokens:
        watch.lap("other")
        hidden = forward(model, sequence)
        watch.lap("forward")
        # On a CPU `.cpu()` would copy nothing.
        host = [state.to("cpu", copy=True).float() for state in hidden]
        watch.lap("copy")
        layers = [layer_stats(layer, state) for layer, state in enumerate(host)]
        watch.lap("statistics")
        first = first or layers
    watch.seconds.pop("other")
    return {
        "sequences": len(tokens),
        "sequence_length": tokens.shape[1],
        "threads": threads,
        "seconds": watch.seconds | {"total": time.time() - psutil.Process().create_time()},
        "layers": first,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, accelerate)},
    }


def main() -> None:
    """Reads the arguments, probes, prints a summary and writes the JSON file."""
    # This script's neighbours have names of packages that transformers looks for.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    parser = argparse.ArgumentParser(
        description="The statistics of `massact probe`, by PyTorch in float32 on the CPU.",
        epilog=f"Needs {NEEDS}.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gguf", type=Path, help="model file")
    source.add_argument("--folder", type=Path, help="model whose blocks stay on the disk")
    parser.add_argument("--dtype", default="float32", help="of a folder's model (%(default)s)")
    parser.add_argument("--tokens", type=Path, required=True, help=".npy file, int32 [S, T]")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    args = parser.parse_args()
    for path in (args.gguf or args.folder, args.tokens):
        if not path.exists():
            parser.error(f"there is no {path}")
    result = probe(
        args.gguf or args.folder, args.tokens, args.threads, args.dtype if args.folder else None
    )
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    for stats in result["layers"]:
        top = stats["top"][0]
        print(
            f"layer {stats['layer']:3}  top {top['value']:12.4f} at position {top['position']}, "
            f"dim {top['dim']}  median {stats['median']:.5f}  kurtosis {stats['kurtosis']:.1f}"
        )
    print("seconds: " + ", ".join(f"{k} {v:.2f}" for k, v in result["seconds"].items()))


if __name__ == "__main__":
    main()
