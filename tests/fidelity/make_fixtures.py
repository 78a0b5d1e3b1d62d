"""Makes the reference numbers of the fidelity tests with PyTorch.

    pip install -e '.[parity]'
    python tests/fidelity/make_fixtures.py
    python tests/fidelity/make_fixtures.py --checkout=DIR

Three small GPT-2s as Sun et al. (2024) train them: their default, with a sink token, and with
explicit attention biases. Without `--checkout` they are the modules below, written from the paper;
with it, they are the authors' own classes, from `gpt-2/model_*.py` of a local clone of
https://github.com/locuslab/massive-activations. Parameters have the authors' names and the same
random values either way. Both must agree with the modules below in float64.

Writes `fixtures/gpt2.npz`, next to this file:

* `made_with`: libraries and models;
* `tokens` int32 [U, B, T+1]: one batch for each of U updates;
* `weights/<parameter>` float32: of all three models; each has those that it has gradients of;
* for each variant of attention, `<variant>/logits` float32 [B, T, V] of the first batch,
  `<variant>/grads/<parameter>` of its loss, `<variant>/losses` [U] before each update, and
  `<variant>/trained/<parameter>` after the last.
"""

# Torch is installed only where fixtures are made.
# pyright: reportMissingImports=false

import argparse
import copy
import dataclasses
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

FIXTURE = Path(__file__).parent / "fixtures" / "gpt2.npz"
TORCH = "2.13.0"
# No two alike, so that no axis can be taken for another; more positions than tokens.
BATCH, DEPTH, HEADS, HEAD_DIM, TOKENS, POSITIONS, VOCAB = 5, 2, 3, 4, 16, 20, 96
WIDTH = HEADS * HEAD_DIM
# The authors' schedule in six updates: at 0, half way up, at the top, half way down, at the end,
# and after it. The highest rate is larger than theirs, so that an error in an update is, too.
LR, FINAL_LR, WARMUP, DECAY_END, UPDATES = 1e-2, 1e-3, 2, 4, 6
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
# Small enough for the epsilon of the first LayerNorm to matter.
EMBEDDING_STD = 0.03
MATRIX_STD = 0.4
SCALE_STD = 0.5
# Makes up for the tied head's small entries: logits of several units, gradients that are clipped.
FINAL_SCALE = 8.0
# Another way to the same numbers may round differently, hence not zero.
SAME_WITHIN = {"logits": 1e-5, "losses": 1e-5, "grads": 1e-5, "trained": 1e-5}

FILES = {"standard": "model_default", "sink": "model_sink", "kv_bias": "model_attn_bias"}


# The models, from the paper; modules are named as the authors name them.


class Attention(nn.Module):
    """softmax(Q [k' K]^T / sqrt(H)) [v'; V] for each head (equation 3), or without k' and v'."""

    def __init__(self, biased: bool):
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.c_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_bias = nn.Parameter(torch.empty(1, HEADS, 1, HEAD_DIM)) if biased else None
        self.v_bias = nn.Parameter(torch.empty(1, HEADS, 1, HEAD_DIM)) if biased else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, _ = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
        if self.k_bias is not None and self.v_bias is not None:
            k = torch.cat([self.k_bias.expand(B, -1, -1, -1), k], dim=2)
            v = torch.cat([self.v_bias.expand(B, -1, -1, -1), v], dim=2)
            hidden = F.pad(hidden, (1, 0), value=False)
        scores = torch.einsum("bnth,bnsh->bnts", q, k) / math.sqrt(HEAD_DIM)
        weights = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
        z = torch.einsum("bnts,bnsh->btnh", weights, v)
        return self.c_proj(z.reshape(B, T, WIDTH))


class Block(nn.Module):
    """Pre-norm, with the exact GELU."""

    def __init__(self, biased: bool):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH, eps=1e-5, bias=False)
        self.attn = Attention(biased)
        self.ln_2 = nn.LayerNorm(WIDTH, eps=1e-5, bias=False)
        self.mlp = nn.ModuleDict({
            "c_fc": nn.Linear(WIDTH, 4 * WIDTH, bias=False),
            "c_proj": nn.Linear(4 * WIDTH, WIDTH, bias=False),
        })  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        up = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](F.gelu(up, approximate="none"))


class GPT(nn.Module):
    """Logits and mean loss, as the authors' models return them."""

    def __init__(self, variant: str):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(VOCAB, WIDTH),
            "wpe": nn.Embedding(POSITIONS, WIDTH),
            "h": nn.ModuleList(Block(variant == "kv_bias") for _ in range(DEPTH)),
            "ln_f": nn.LayerNorm(WIDTH, eps=1e-5, bias=False),
        })  # fmt: skip
        self.reg_token = nn.Parameter(torch.empty(1, 1, WIDTH)) if variant == "sink" else None

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[Any, Any]:
        parts: Any = self.transformer
        x = parts["wte"](tokens) + parts["wpe"].weight[: tokens.shape[1]]
        if self.reg_token is not None:
            x = torch.cat([self.reg_token.expand(len(x), -1, -1), x], dim=1)
        for block in parts["h"]:
            x = block(x)
        x = parts["ln_f"](x[:, -tokens.shape[1] :])
        logits = x @ parts["wte"].weight.T
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def authors_model(checkout: Path, variant: str) -> nn.Module:
    """The same model from the authors' code."""
    path = checkout / "gpt-2" / f"{FILES[variant]}.py"
    spec = importlib.util.spec_from_file_location(FILES[variant], path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{path} does not exist; expected: a clone of the authors' repository")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GPT(
        module.GPTConfig(
            block_size=POSITIONS,
            vocab_size=VOCAB,
            n_layer=DEPTH,
            n_head=HEADS,
            n_embd=WIDTH,
            dropout=0.0,
            bias=False,
        )
    )


# Their numbers.


@dataclasses.dataclass(frozen=True)
class Reference:
    """What one model gave; see the module's docstring."""

    logits: np.ndarray
    losses: np.ndarray
    grads: dict[str, np.ndarray]
    trained: dict[str, np.ndarray]


def random_weight(name: str, shape: torch.Size) -> torch.Tensor:
    """Float32 values that depend on the name only, none of them at its initial size."""
    noise = np.random.default_rng(list(name.encode())).standard_normal(shape)
    if "ln_" in name:
        value = (FINAL_SCALE if "ln_f" in name else 1.0) * (1 + SCALE_STD * noise)
    elif name.endswith(("wte.weight", "wpe.weight", "reg_token")):
        value = EMBEDDING_STD * noise
    else:
        # k' and v' as large as keys and values are.
        value = (1.0 if name.endswith("_bias") else MATRIX_STD) * noise
    return torch.from_numpy(value.astype(np.float32))


def set_weights(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_weight(name, parameter.shape))


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine, then constant."""
    if step < WARMUP:
        return LR * step / WARMUP
    progress = min(1.0, (step - WARMUP) / (DECAY_END - WARMUP))
    return FINAL_LR + (LR - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(model: Any) -> torch.optim.Optimizer:
    """AdamW that decays arrays of two or more dimensions; the authors' own where it is theirs."""
    if hasattr(model, "configure_optimizers"):
        return model.configure_optimizers("adam", WEIGHT_DECAY, LR, BETAS, "cpu")
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS)


def reference_of(model: nn.Module, batches: np.ndarray) -> Reference:
    """Runs and trains a model; it must have its weights already."""
    optimizer = make_optimizer(model)
    first, grads, losses = None, {}, []
    for step, batch in enumerate(torch.from_numpy(batches).long()):
        logits, loss = model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        if first is None:
            first = logits.detach().numpy()
            grads = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
        losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        optimizer.zero_grad()
    trained = {name: p.detach().numpy() for name, p in model.named_parameters()}
    assert first is not None
    return Reference(first, np.array(losses), grads, trained)


def check_same(what: str, found: Reference, exact: Reference) -> None:
    """Raises unless two ways to the same numbers agree."""
    for field in dataclasses.fields(Reference):
        a, b = getattr(found, field.name), getattr(exact, field.name)
        if not isinstance(a, dict):
            a, b = {"": a}, {"": b}
        if a.keys() != b.keys():
            raise AssertionError(f"{what}: parameters {sorted(a.keys() ^ b.keys())} of one only")
        difference = max(float(np.abs(a[name] - b[name]).max()) for name in a)
        print(f"{what}: {field.name} within {difference:.1e}")
        if not difference <= SAME_WITHIN[field.name]:
            raise AssertionError(f"{what}: {field.name} differ by {difference:g}")


def make(model_of: Callable[[str], nn.Module], made_with: str) -> dict[str, np.ndarray]:
    """The arrays of the fixture."""
    shape = (UPDATES, BATCH, TOKENS + 1)
    tokens = np.random.default_rng(0).integers(VOCAB, size=shape, dtype=np.int32)
    arrays = {"made_with": np.array(made_with), "tokens": tokens}
    for variant in FILES:
        model, plain = model_of(variant), GPT(variant)
        for each in (model, plain):
            set_weights(each)
        weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
        found = reference_of(model, tokens)
        check_same(variant, found, reference_of(copy.deepcopy(plain).double(), tokens))
        arrays |= {f"weights/{name}": array for name, array in weights.items()}
        arrays |= {f"{variant}/logits": found.logits, f"{variant}/losses": found.losses}
        arrays |= {f"{variant}/grads/{name}": array for name, array in found.grads.items()}
        arrays |= {f"{variant}/trained/{name}": array for name, array in found.trained.items()}
    return arrays


def main() -> None:
    """Makes the fixture anew."""
    parser = argparse.ArgumentParser(description="Makes the fixture anew.")
    parser.add_argument("--checkout", type=Path, help="a clone of the authors' repository")
    parser.add_argument("--out", type=Path, default=FIXTURE, help="default: next to this file")
    args = parser.parse_args()
    if torch.__version__.split("+")[0] != TORCH:
        raise SystemExit(f"torch is {torch.__version__}; the reference is made with {TORCH}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    made_with = f"torch {torch.__version__}, "
    if args.checkout is None:
        arrays = make(GPT, made_with + "the modules of make_fixtures.py")
    else:
        model_of = lambda variant: authors_model(args.checkout, variant)
        arrays = make(model_of, made_with + "the authors' gpt-2/model_*.py")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **arrays)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
