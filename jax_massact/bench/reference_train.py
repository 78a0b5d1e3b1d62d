"""Time of one training step of a PyTorch model with the interface of the paper's GPT-2 code.

    python jax_massact/bench/reference_train.py MODEL.py SETTINGS

MODEL.py is one of the authors' `gpt-2/model_*.py` (https://github.com/locuslab/massive-activations):
it defines `GPT` and `GPTConfig`. SETTINGS is JSON: `vocab_size`, `depth`, `width`, `num_heads`,
`batch_size`, `sequence_length`, `lr`, `weight_decay`, `beta1`, `beta2`, `clip`, `steps`, `windows`,
`compile`. A script on its own: it imports nothing of this package and runs where torch is. The
step is that of the authors' `train.py`: bfloat16 autocast over float32 parameters, clipping, fused
AdamW. Prints one line of JSON.
"""

# Torch is installed only where this is run.
# pyright: reportMissingImports=false

import contextlib
import importlib.util
import io
import json
import statistics
import sys
import time
from typing import Any


def load(path: str, settings: dict[str, Any]) -> Any:
    """The model that the file defines, new weights."""
    spec = importlib.util.spec_from_file_location("reference_model", path)
    if spec is None or spec.loader is None:
        sys.exit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=settings["sequence_length"], vocab_size=settings["vocab_size"],
        n_layer=settings["depth"], n_head=settings["num_heads"], n_embd=settings["width"],
        dropout=0.0, bias=False,
    )
    return module.GPT(config)


def measure(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """As `train_step.measure`: seconds of compilation and of a step, and the last loss."""
    try:
        import torch
    except ImportError:
        sys.exit(f"no torch in {sys.executable}")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(path, settings).to(device)
    betas = (settings["beta1"], settings["beta2"])
    optimizer = model.configure_optimizers(
        "adam", settings["weight_decay"], settings["lr"], betas, device
    )
    run = torch.compile(model) if settings["compile"] else model
    shape = (settings["batch_size"], settings["sequence_length"] + 1)
    tokens = torch.randint(0, settings["vocab_size"], shape, device=device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = run(inputs, targets)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    begin = time.perf_counter()
    step()
    wait()
    compiled = time.perf_counter() - begin
    for _ in range(3):
        step()
    wait()
    seconds, loss = [], None
    for _ in range(settings["windows"]):
        begin = time.perf_counter()
        for _ in range(settings["steps"]):
            loss = step()
        wait()
        seconds.append((time.perf_counter() - begin) / settings["steps"])
    step_seconds = statistics.median(seconds)
    tokens_in_step = settings["batch_size"] * settings["sequence_length"]
    return {
        "compile": compiled,
        "step": step_seconds,
        "windows": seconds,
        "tokens_per_second": tokens_in_step / step_seconds,
        "peak": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "loss": None if loss is None else float(loss),
        "torch": torch.__version__,
    }


def main(path: str, settings: str) -> None:
    # What the authors' code says while it is set up.
    with contextlib.redirect_stdout(io.StringIO()):
        result = measure(path, json.loads(settings))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
