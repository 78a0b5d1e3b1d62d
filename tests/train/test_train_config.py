"""Settings of training that are refused, and what the refusal says."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_models import varied
from train_runs import MICRO

from jax_massact.accelerators import PEAK_FLOPS, peak_flops
from jax_massact.errors import ConfigError
from jax_massact.nn.block_config import MLPConfig, MoEConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.transformer import abstract, parameters
from jax_massact.train.config import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    WatchConfig,
    gpt2,
    to_json,
)
from jax_massact.train.metrics import flops_per_token
from jax_massact.train.resume import check_settings
from jax_massact.train.step import parameter_count


@pytest.mark.parametrize(("make", "said"), [
    (lambda: OptimizerConfig(name="sgd"), "name is 'sgd'; expected: 'adamw', 'muon'"),
    (lambda: OptimizerConfig(lr=0.0), "lr is 0.0; expected: a number above 0"),
    (lambda: OptimizerConfig(lr=1e-3, final_lr=1e-2), "final_lr is 0.01; .* at most 0.001"),
    (lambda: OptimizerConfig(beta2=1.0), "beta2 is 1.0; .* below 1"),
    (lambda: OptimizerConfig(schedule="step"), "'cosine', 'constant_then_decay'"),
    (lambda: MeshConfig(fsdp=0), "fsdp is 0; expected: a whole number of at least 1"),
    (lambda: WatchConfig(sink_epsilon=1.5), "sink_epsilon is 1.5; .* at most 1"),
    (lambda: CheckpointConfig(every=10, keep_every=25), "keep_every is 25; .* multiple of every"),
    (lambda: DataConfig(tokenizer=3), "data.tokenizer is 3; expected: a text"),
    (lambda: gpt2(width=100, heads=3), "heads is 3; expected: a divisor of width, 100"),
    (lambda: dataclasses.replace(MICRO, loss_from=16), "loss_from is 16; .* at most 15"),
    (lambda: dataclasses.replace(MICRO, accumulate=3), "accumulate is 3; expected: a divisor of b"),
    (lambda: dataclasses.replace(MICRO, accumulate=2, mesh=MeshConfig(data=4, fsdp=2)),
     "mesh.data x mesh.fsdp is 8; .* which is 4"),
    (lambda: dataclasses.replace(MICRO, sequence_length=17), "sequence_length is 17; .* most 16"),
    (lambda: dataclasses.replace(MICRO, watch=WatchConfig(sequences=9)), "watch.sequences is 9"),
    (lambda: dataclasses.replace(MICRO, optimizer=OptimizerConfig(warmup=20, decay_end=20)),
     "are 20, 20 and 20; expected: warmup <= decay_start < decay_end"),
    (lambda: dataclasses.replace(MICRO, optimizer=OptimizerConfig(
        schedule="constant_then_decay", warmup=2, decay_start=25, decay_end=0)),
     r"are 2, 25 and 20 \(steps, because decay_end is 0\); expected: "),
    (lambda: dataclasses.replace(MICRO, stall_seconds=-1), "stall_seconds is -1"),
    (lambda: dataclasses.replace(MICRO, remat="yes"), "remat is 'yes'; expected: True, False"),
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
    check_settings(longer, before, 20, "runs/a")
    other = dataclasses.replace(MICRO, data=DataConfig(source="x.txt"), seed=3)
    said = "runs/a .*: data.source was 'help-3.11' and is 'x.txt'; seed was 0 and is 3"
    with pytest.raises(ConfigError, match=said):
        check_settings(other, before, 20, "runs/a")
    # As written when a model's settings lay in one plane.
    before["model"]["family"] = "gpt2"
    with pytest.raises(ConfigError, match=r"runs/a holds a run of an earlier version.*--workdir"):
        check_settings(MICRO, before, 20, "runs/a")


def test_growing_steps_may_not_move_the_learning_rate_of_steps_already_made():
    """As an uninterrupted run with the new settings: the decay would have begun later."""
    cosine = OptimizerConfig(lr=1e-2, final_lr=0.0, warmup=3, decay_end=0)
    short = dataclasses.replace(MICRO, optimizer=cosine, steps=20)
    long = dataclasses.replace(short, steps=40)
    before = json.loads(to_json(short))
    # At the end of the cosine the rate was 0; of the longer one, 17 of 37 steps in, it is this.
    rate = 1e-2 * (1 + np.cos(np.pi * 17 / 37)) / 2
    said = (f"runs/a: steps was 20 and is 40, which changes .* at step 20 from 0 to {rate:.3g}. "
            "Expected: --config.steps=20; --config.optimizer.decay_end=20 to train on")
    with pytest.raises(ConfigError, match=said):
        check_settings(long, before, 20, "runs/a")
    check_settings(long, before, 3, "runs/a")  # not yet decayed
    with pytest.raises(ConfigError, match="at step 4 from"):
        check_settings(long, before, 4, "runs/a")
    # The advice: the schedule stays, and what follows has its last rate.
    kept = dataclasses.replace(long, optimizer=dataclasses.replace(cosine, decay_end=20))
    check_settings(kept, before, 20, "runs/a")
    constant = dataclasses.replace(cosine, schedule="constant_then_decay")
    short, long = (dataclasses.replace(c, optimizer=constant) for c in (short, long))
    check_settings(long, json.loads(to_json(short)), 18, "runs/a")
    with pytest.raises(ConfigError, match="at step 19 from 0.005 to 0.01"):
        check_settings(long, json.loads(to_json(short)), 19, "runs/a")


@pytest.mark.parametrize(("steps", "schedule", "warmup"), [
    (20, "cosine", 2), (51, "cosine", 50), (50, "cosine", 5), (600, "cosine", 50),
    (55, "constant_then_decay", 5), (60, "constant_then_decay", 50), (1, "cosine", 0),
])
def test_a_warm_up_that_does_not_fit_is_a_tenth_of_the_run(steps, schedule, warmup):
    settings = OptimizerConfig(warmup=50, decay_end=0, schedule=schedule)
    config = dataclasses.replace(MICRO, optimizer=settings, steps=steps)
    assert config.warmup == warmup and config.decay_end == steps


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


def test_operations_of_a_mixture_are_those_of_the_experts_that_serve_a_token():
    block = MICRO.model.block
    mlp = MLPConfig(hidden=24, moe=MoEConfig(experts=6, active=2, shared=8))
    model = dataclasses.replace(MICRO.model, block=dataclasses.replace(block, mlp=mlp))
    shapes = {name: x.shape for name, x in parameters(abstract(model)).items()}
    count = sum(map(np.prod, shapes.values()))
    experts = sum(np.prod(x) for name, x in shapes.items() if "experts" in name)
    used = count - np.prod(shapes["positions"]) - experts * 4 // 6
    assert flops_per_token(model, count, 16) == 6 * used + 12 * 2 * 32 * 16


def test_peak_of_the_devices():
    class Device:
        device_kind = "NVIDIA H200"

    assert peak_flops("bfloat16", [Device(), Device()]) == 2 * PEAK_FLOPS["NVIDIA H200"]
    assert peak_flops("float32", [Device()]) is None
    Device.device_kind = "cpu"
    assert peak_flops("bfloat16", [Device()]) is None
