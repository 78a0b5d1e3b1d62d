"""Trains MICRO in the folder given, for a test that kills this process."""

import dataclasses
import sys
from pathlib import Path

from train_runs import MICRO, Counting

from jax_massact.train.loop import train

if __name__ == "__main__":
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    # Checkpoints are being written at nearly every moment.
    checkpoint = dataclasses.replace(MICRO.checkpoint, every=2)
    config = dataclasses.replace(MICRO, steps=steps, checkpoint=checkpoint)
    train(config, Counting(), folder, on_row=lambda row: print(row["step"], flush=True))
