"""Trains MICRO in a folder, killed at random moments and resumed, many times.

Every life is forked from this process, which has imported everything and started nothing.
"""

import dataclasses
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

from train_runs import MICRO, Counting

from jax_massact.train.loop import train

STEPS, LIVES = 80, 10
CONFIG = dataclasses.replace(
    MICRO,
    steps=STEPS,
    # A checkpoint is being written at nearly every moment.
    checkpoint=dataclasses.replace(MICRO.checkpoint, every=2),
    watch=dataclasses.replace(MICRO.watch, every=0),
    validate_every=0,
)


def live(folder: Path, says: int) -> None:
    """One life, which writes a byte for every row."""
    train(CONFIG, Counting(), folder, on_row=lambda row: os.write(says, b"."))


def main(folder: Path, seed: int) -> None:
    """Prints how many lives were killed, and in how many of them updates were made."""
    rng = random.Random(seed)
    active = 0
    for life in range(LIVES):
        hears, says = os.pipe()
        if (child := os.fork()) == 0:
            live(folder, says)
            os._exit(0)
        os.close(says)
        # A third while it starts, the others once it trains.
        if life % 3:
            active += all(os.read(hears, 1) for _ in range(rng.randint(1, 9)))
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(0, 1.0))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(hears)
        if os.WIFEXITED(status):
            sys.exit(f"life {life} ended by itself: {os.WEXITSTATUS(status)}")
    print(LIVES, active, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # JAX's threads are started in the children only
    main(Path(sys.argv[1]), int(sys.argv[2]))
