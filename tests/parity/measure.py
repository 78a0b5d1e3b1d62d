"""Records how closely every family agrees with what its fixtures hold.

    PYTHONPATH=tests python tests/parity/measure.py [FAMILY ...]

Writes `jax_massact/families/checked.json`, which `massact list families` prints.
"""

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from parity import gguf_writer
from parity.family_cases import TOKENS, VOCAB
from parity.random_weights import draw, tokens
from safetensors.numpy import save_file

from jax_massact.families.checked import Checked
from jax_massact.families.table import FAMILIES as TABLE
from jax_massact.loading import open_checkpoint

HERE = Path(__file__).parent
RECORD = Path(__file__).parents[2] / "jax_massact" / "families" / "checked.json"


def off(values: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest value; rounded up."""
    return float(f"{np.abs(values - expected).max() / np.abs(expected).max() * 1.05:.1e}")


@jax.jit
def run(model, ids):
    """Logits and the residual stream, before the first block and after each."""
    logits, hidden = model(ids, tap=lambda acts: acts.resid_post)
    return logits, jax.numpy.concatenate([model.embedded(ids)[None], hidden])


def of_family(name: str, folder: Path) -> Checked:
    """How closely one family agrees."""
    with np.load(HERE / "families" / f"{name}.npz") as file:
        stored = json.loads(str(file["cases"]))
        versions, pairs = str(file["versions"]), []
        for i, case in enumerate(stored):
            path = folder / str(i)
            path.mkdir()
            (path / "config.json").write_text(json.dumps(case["config"]))
            save_file(draw(case["tensors"], case["seed"]), path / "model.safetensors")
            model = open_checkpoint(path).load_model()
            logits, hidden = run(model, tokens(TOKENS, VOCAB, case["seed"]))
            pairs.append((off(logits[0], file[f"logits_{i}"]),
                          off(hidden[:, 0], file[f"hidden_{i}"])))
    left_out = gguf_writer.UNSTATED.get(name, ())
    in_gguf = [c for c in stored if name in gguf_writer.CONVERSIONS and c["name"] not in left_out]
    logits, hidden = (max(values) for values in zip(*pairs, strict=True))
    oracle = versions.partition(", ")[2]
    return Checked(
        oracle=oracle, models=len(stored), gguf=len(in_gguf), logits=logits, hidden=hidden
    )


def main() -> None:
    """Records the families that are named, or all."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for family in TABLE:
        name = family.model_type
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            record[name] = of_family(name, Path(folder))
        print(name, record[name], flush=True)
        ordered = {f.model_type: record[f.model_type] for f in TABLE if f.model_type in record}
        RECORD.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main()
