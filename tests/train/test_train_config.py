"""Settings of training that are refused, and what the refusal says."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_models import varied
from train_runs import MICRO

from jax_massact.accelerators import PEAK_FLOPS, peak_flops
from jax_massact.errors import ConfigError
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.transformer import abstract, parameters
from jax_massact.train.config import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    WatchConfig,
    check_same_run,
    gpt2,
    to_json,
)
from jax_massact.train.metrics import flops_per_token
from jax_massact.train.step import parameter_count


@pytest.mark.parametrize(("make", "said"), [
    (lambda: OptimizerConfig(name="sgd"), "name is 'sgd'; allowed: 'adamw', 'muon'"),
    (lambda: OptimizerConfig(lr=0.0), "lr is 0.0; allowed: a number above 0"),
    (lambda: OptimizerConfig(lr=1e-3, final_lr=1e-2), "final_lr is 0.01; .* at most 0.001"),
    (lambda: OptimizerConfig(beta2=1.0), "beta2 is 1.0; .* below 1"),
    (lambda: OptimizerConfig(schedule="step"), "'cosine', 'constant_then_decay'"),
    (lambda: MeshConfig(fsdp=0), "fsdp is 0; allowed: a whole number of at least 1"),
    (lambda: WatchConfig(sink_epsilon=1.5), "sink_epsilon is 1.5; .* at most 1"),
    (lambda: CheckpointConfig(every=10, keep_every=25), "keep_every is 25; .* multiple of every"),
    (lambda: DataConfig(tokenizer=3), "data.tokenizer is 3; allowed: a text"),
    (lambda: gpt2(width=100, heads=3), "heads is 3; allowed: a divisor of width, 100"),
    (lambda: dataclasses.replace(MICRO, accumulate=3), "accumulate is 3; allowed: a divisor of b"),
    (lambda: dataclasses.replace(MICRO, accumulate=2, mesh=MeshConfig(data=4, fsdp=2)),
     "mesh.data x mesh.fsdp is 8; .* which is 4"),
    (lambda: dataclasses.replace(MICRO, sequence_length=17), "sequence_length is 17; .* most 16"),
    (lambda: dataclasses.replace(MICRO, watch=WatchConfig(sequences=9)), "watch.sequences is 9"),
    (lambda: dataclasses.replace(MICRO, optimizer=OptimizerConfig(warmup=20, decay_end=20)),
     "are 20, 20 and 20; allowed: warmup <= decay_start < decay_end"),
    (lambda: dataclasses.replace(MICRO, remat="yes"), "remat is 'yes'; allowed: True, False"),
])
def test_what_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_the_defaults_are_the_authors_gpt2():
    config = TrainConfig()
    assert parameter_count(config) == 124_373_760  # nanoGPT's count with vocabulary 50304
    assert config.batch_size * config.sequence_length == 491_520
    kv_bias = dataclasses.replace(config, model=gpt2(variant="kv_bias"))
    assert parameter_count(kv_bias) - parameter_count(config) == 12 * 2 * 768


def test_a_run_may_become_longer_but_not_another():
    before = json.loads(to_json(MICRO))
    longer = dataclasses.replace(MICRO, steps=99, mesh=MeshConfig(data=2), log_every=7)
    check_same_run(longer, before, "runs/a")
    other = dataclasses.replace(MICRO, data=DataConfig(source="x.txt"), seed=3)
    said = "runs/a .*: data.source was 'help-3.11' and is 'x.txt'; seed was 0 and is 3"
    with pytest.raises(ConfigError, match=said):
        check_same_run(other, before, "runs/a")


def test_operations_of_a_token():
    """6 for every multiplied parameter, counted from the shapes of the matrices."""
    for tied in (True, False):
        model = varied(MICRO.model, tied=tied)
        assert isinstance(model, ModelConfig)
        count = sum(x.size for x in parameters(abstract(model)).values())
        shapes = {name: x.shape for name, x in parameters(abstract(model)).items()}
        looked_up = [np.prod(shapes["positions"]), 0 if tied else np.prod(shapes["embed"])]
        expected = 6 * (count - sum(looked_up)) + 12 * 2 * 32 * 16
        assert flops_per_token(model, count, 16) == expected


def test_peak_of_the_devices():
    class Device:
        device_kind = "NVIDIA H200"

    half = dataclasses.replace(MICRO.model, dtype="bfloat16")
    assert peak_flops(half, [Device(), Device()]) == 2 * PEAK_FLOPS["NVIDIA H200"]
    assert peak_flops(MICRO.model, [Device()]) is None
    Device.device_kind = "cpu"
    assert peak_flops(half, [Device()]) is None
