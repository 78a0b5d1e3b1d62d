"""A ViT of timm under torch.compile: its forward pass, and what the paper's authors measure of it.

    python jax_massact/bench/reference_images.py SETTINGS

A script on its own, which needs torch, timm and a GPU and imports nothing of this package. SETTINGS
is JSON: `model` (timm's name), `image_size`, `batch_size`, `windows`. As the authors do, after each
block the three largest magnitudes and the median of every image are taken; here on the device, and
compiled with the model. Prints seconds of both as JSON.
"""

# Torch is installed only where this is run.
# pyright: reportMissingImports=false, reportMissingModuleSource=false

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

CALLS = 3


def seconds(run: Callable[[], Any], windows: int) -> float:
    """Median seconds of a call, after two that compile and warm up."""
    import torch

    found = []
    for window in range(windows + 2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(1 if window < 2 else CALLS):
            run()
        torch.cuda.synchronize()
        if window > 1:
            found.append((time.perf_counter() - begin) / CALLS)
    return statistics.median(found)


def main(settings: dict[str, Any]) -> None:
    import timm
    import torch

    size, batch = settings["image_size"], settings["batch_size"]
    model = timm.create_model(settings["model"], img_size=size, num_classes=0)
    model = model.to("cuda", torch.bfloat16).eval()
    images = torch.randn(batch, 3, size, size, device="cuda", dtype=torch.bfloat16)

    def probe(images):
        x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        found = []
        for block in model.blocks:
            x = block(x)
            magnitude = x.abs().flatten(1)
            found.append((magnitude.topk(3).values, magnitude.median(1).values))
        return model.norm(x)[:, 0], found

    rows = {}
    with torch.no_grad():
        for name, function in (("forward", model), ("probe", probe)):
            compiled = torch.compile(function)
            rows[name] = seconds(lambda run=compiled: run(images), settings["windows"])
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    print(json.dumps({"seconds": rows, "versions": versions}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
