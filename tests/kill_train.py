"""Trains MICRO in a folder, killed at random moments and resumed, many times."""

import dataclasses
import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path

from forked import Forked
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


def live(folder: Path, says: Connection) -> None:
    """One life, which sends something for every row."""
    train(CONFIG, Counting(), folder, on_row=lambda row: says.send(row["step"]))


def kill(folder: Path, seed: int) -> int:
    """The number of lives that were killed once they had made updates."""
    rng = random.Random(seed)
    active = 0
    for life in range(LIVES):
        hears, says = multiprocessing.Pipe(duplex=False)
        process = Forked(live, folder, says)
        says.close()
        # A third while it starts, the others once it trains.
        if life % 3:
            active += all(hears.recv() for _ in range(rng.randint(1, 9)))
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(0, 1.0))
        assert process.poll() is None, process.communicate()
        process.kill()
        process.wait()
        hears.close()
    return active
