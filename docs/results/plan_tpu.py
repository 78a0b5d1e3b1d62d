"""Plans three models for four slices of TPUs: python docs/results/plan_tpu.py HARDWARE

Writes plan-tpu.json beside this file: what `massact plan` makes of each, with libtpu. HARDWARE
says in words where. A model that the file has already for a slice is left as it is, so that the
whole, which takes half an hour of one core, can be made in parts.
"""

import json
import os
import sys
import tempfile
from datetime import date
from pathlib import Path

from jax_massact.cli import main

FILE = Path(__file__).parent / "plan-tpu.json"
ROOT = FILE.parents[2]
LARGE = ("v5e:16x16", "v5p:8x8x4", "v6e:16x16")
GPT2, GPT2_XL, LLAMA = (
    f"--config=configs/{name}.py:kv_bias" for name in ("gpt2_124m", "gpt2_1_3b", "llama_7b")
)
# Model and slice, and what its batch and its mesh must be there: on 16 chips, on 2 x 16, on 256.
ROWS = {
    ("GPT-2 124M", "v5e:4x4"): f"{GPT2} --config.mesh.data=16",
    ("GPT-2 124M", "2xv5e:4x4"): f"{GPT2} --config.mesh=dcn=2,data=-1",
    **{("GPT-2 124M", name):
       f"{GPT2} --config.batch_size=512 --config.accumulate=1 --config.unroll=false"
       for name in LARGE},
    ("GPT-2 1.3B", "v5e:4x4"): f"{GPT2_XL} --config.accumulate=16",
    **{("GPT-2 1.3B", name): GPT2_XL for name in LARGE},
    ("LLaMA 7B", "v5e:4x4"): f"{LLAMA} --config.mesh=fsdp=16 --config.accumulate=64",
    **{("LLaMA 7B", name): LLAMA for name in LARGE},
}


def plan(arguments: list[str]) -> dict:
    """What `massact plan` writes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        if main(["plan", *arguments, f"--json={file}"]) == 2:
            raise SystemExit(f"massact plan {' '.join(arguments)}: not made")
        return json.loads(file.read_text())


def make(hardware: str) -> None:
    """Makes the rows that are missing, and writes after each."""
    os.chdir(ROOT)
    found = json.loads(FILE.read_text()) if FILE.exists() else {"rows": []}
    rows = {(row["model"], row["slice"]): row for row in found["rows"]}
    for (model, name), options in ROWS.items():
        if (model, name) in rows:
            continue
        arguments = [*options.split(), f"--device={name}"]
        command = f"massact plan {' '.join(arguments)}"
        made = {"command": command, "hardware": hardware, "date": str(date.today())}
        row = {"model": model, "slice": name, "made": made, **plan(arguments)}
        rows[model, name] = row
        versions = {"python": sys.version.split()[0], **row["compiled"]["versions"]}
        found = {"versions": versions, "rows": [rows[key] for key in ROWS if key in rows]}
        FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    make(*sys.argv[1:])
