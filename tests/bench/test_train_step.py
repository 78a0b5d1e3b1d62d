"""The timer of a training step, as it is run: settings in, one line of JSON out."""

import json

from train_runs import MICRO

from jax_massact.bench import train_step
from jax_massact.train.config import to_json


def test_one_line_of_json(capsys):
    config = MICRO
    train_step.main(to_json(config), "2", "3", "5")
    (line,) = capsys.readouterr().out.strip().splitlines()
    found = json.loads(line)
    assert len(found["windows"]) == 3 and min(found["windows"]) <= found["step"]
    tokens = config.batch_size * config.sequence_length
    assert abs(found["tokens_per_second"] * found["step"] - tokens) < 1e-6 * tokens
    assert found["compile"] > 0 and found["watch"] > 0 and 0 < found["loss"] < 20
