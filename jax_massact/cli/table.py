"""The commands of `massact`, one row each.

A study of a model is its folder under `studies/` and a row of `STUDIES`. Nothing here imports what
a command needs: functions and settings are named as "module:name" and imported when one runs.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_MODEL_HELP = (
    "a named resource (smollm2-135m), a .gguf file, a folder with config.json and safetensors, a "
    "Hugging Face id, or the folder of a training run"
)
_VARIANTS = "standard,sink,kv_bias"


class Option(NamedTuple):
    """An argument of a command, as `argparse.ArgumentParser.add_argument` takes it."""

    name: str
    details: Mapping[str, Any]


class Group(NamedTuple):
    """Options under a title of their own."""

    title: str
    about: str
    options: tuple[Option, ...]


class Command(NamedTuple):
    """One command.

    Attributes:
      about: what it answers, in the list of commands.
      example: a whole command line, for `--help`.
      run: "module:name" of the function that runs it: (arguments, overrides) to an exit code.
      settings: "module:name" of its settings; empty: it has none.
      options: makes its arguments; called only where they are needed.
      description: what `--help` says above the arguments.
      needs_config: whether it cannot run without a file of settings.
    """

    about: str
    example: str
    run: str
    settings: str
    options: Callable[[], tuple[Option | Group, ...]]
    description: str = ""
    needs_config: bool = False


class Study(NamedTuple):
    """A study of a model on a text: the folder of its name under `studies/`.

    Attributes:
      about: what it answers.
      example: its settings in an example, after the model.
      settings: name of its settings, in its `settings` module or, if it has none, in that of all
        studies.
      writes: what it leaves in the folder of results.
      schema: "module:name" of its result's TypedDict, in `studies`.
      model: of the example.
    """

    about: str
    example: str
    settings: str
    writes: str
    schema: str
    model: str = "smollm2-135m"


STUDIES = {
    "probe": Study(
        about="does a model have massive activations: where, since which layer, how large, who "
        "writes them",
        example="--config.bos=true --config.text=book.txt",
        settings="probe.settings:ProbeConfig",
        writes="probe.json, report.html and figures",
        schema="probe.result:ProbeResult",
    ),
    "intervene": Study(
        about="what the perplexity is when they are set to zero, to their mean, to a part of it, "
        "and whether the model needs them",
        example="--config.layers=11 --config.fractions='(0.5,)'",
        settings="settings:InterveneConfig",
        writes="intervene.json, intervene.html and figures",
        schema="interventions_result:InterveneResult",
    ),
    "explain": Study(
        about="what attention makes of them: sink rate, norms, keys and values, value updates, "
        "locations",
        example="--config.sequences=8",
        settings="explain.settings:ExplainConfig",
        writes="explain.json, explain.html and figures",
        schema="explain.result:ExplainResult",
    ),
    "fold": Study(
        about="write the keys and values of a fixed first token, or of registers, as explicit k', "
        "v', drop them, and compare",
        example="--workdir=out",
        settings="fold.settings:FoldConfig",
        writes="fold.json, fold.html and the folded model",
        schema="fold.result:FoldResult",
    ),
    "registers": Study(
        about="move the neurons that write outlier patches of an image encoder to an appended "
        "token, or to k', v'; scores and controls",
        example="--config.images=photos",
        settings="registers.settings:RegistersConfig",
        writes="registers.json, registers.html and figures",
        schema="registers.result:RegistersResult",
        model="dinov2-s-focus",
    ),
    "quantize": Study(
        about="what they cost in 8 bits: perplexity with rounded activations or weights, ranges, "
        "blocks; before and after folding",
        example="--config.rows=linear:int8:tensor,residual:fp8:token",
        settings="quantize.settings:QuantizeConfig",
        writes="quantize.json, quantize.html and figures",
        schema="quantize.result:QuantizeResult",
    ),
}


def whole(text: str) -> int:
    """A whole number, for an option; argparse adds the option's name to what is refused."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} given; expected: a whole number") from None


def option(name: str, help: str, **details: Any) -> Option:
    """A row of an option; `help` comes second, since it is what one reads."""
    return Option(name, {"help": help, **details})


def _study(name: str, study: Study) -> Command:
    def options() -> tuple[Option | Group, ...]:
        return (
            option("model", _MODEL_HELP, metavar="MODEL"),
            option(
                "--workdir", f"folder for {study.writes} (default: massact_out/MODEL)",
                metavar="DIR",
            ),
            option(
                "--step", "checkpoint of a training run (default: the model at its end, or its "
                "newest checkpoint)", metavar="N", type=whole,
            ),
            *(_probe_plan() if name == "probe" else ()),
        )

    settings = f"jax_massact.studies.{study.settings}"
    run = "probe" if name == "probe" else "study"
    return Command(
        study.about, f"massact {name} {study.model} {study.example}", f"jax_massact.cli.run:{run}",
        settings, options,
    )


def _probe_plan() -> tuple[Group]:
    return (Group(
        "on devices that are not here",
        "Nothing is loaded and nothing runs. MODEL may also be random:SHAPE, of `massact bench "
        "probe`.",
        (
            option("--plan", "compile the probe of one batch for this slice of TPUs, such as "
                   "v5e:4x4, where libtpu is installed ('jax_massact[tpu-aot]'): memory, "
                   "collectives, time", metavar="SLICE"),
            option("--mesh", "with --plan: how the chips share model and sequences (fsdp=-1)",
                   metavar="MESH"),
            option("--json", "with --plan: also write it to this file", metavar="FILE"),
        ),
    ),)


def _train() -> tuple[Option | Group, ...]:
    from jax_massact.cluster.processes import HEARTBEAT, TIMEOUT

    seconds = {"type": whole, "metavar": "SECONDS"}
    return (
        option(
            "--workdir", "folder for the run; resumes the run that is already there",
            metavar="DIR", required=True,
        ),
        Group(
            "several processes",
            "The same command on every host, except for --process. Where Slurm, Open MPI, "
            "Kubernetes or a TPU pod starts them, --processes alone is enough.",
            (
                option(
                    "--coordinator", "address of process 0, which all processes must reach (or "
                    "MASSACT_COORDINATOR)", metavar="HOST:PORT",
                ),
                option("--processes", "number of processes (or MASSACT_PROCESSES)", metavar="N"),
                option(
                    "--process", "index of this process, from 0 (or MASSACT_PROCESS)", metavar="I"
                ),
                option(
                    "--timeout", "time for all processes to join (%(default)s)", default=TIMEOUT,
                    **seconds,
                ),
                option(
                    "--heartbeat", "seconds without a heartbeat after which a process is "
                    "considered dead and the run stops (%(default)s)", default=HEARTBEAT, **seconds,
                ),
            ),
        ),
    )


def _compare() -> tuple[Option | Group, ...]:
    return (
        option("runs", "folder of a finished run", metavar="RUN", nargs="*"),
        option(
            "--workdir", "folder for compare.json, its page, figures and, with --config, the runs",
            metavar="DIR", required=True,
        ),
        option(
            "--variants", "attention variants, with --config (%(default)s)", metavar="NAMES",
            default=_VARIANTS,
        ),
        option("--seeds", "runs of each variant (1)", type=whole, default=1, metavar="N"),
        option(
            "--interventions", "set each run's massive activations to zero, to their mean, and a "
            "control to zero; round weights and activations to 8 bits; needs its model and its "
            "data (yes)",
            action=argparse.BooleanOptionalAction, default=True,
        ),
    )


def _plan() -> tuple[Option | Group, ...]:
    from jax_massact.accelerators import ACCELERATORS

    return (
        option("--devices", "number of devices; those of a topology are known", type=whole,
               metavar="N"),
        option("--device", f"kind: {', '.join(ACCELERATORS)}; or the topology of a TPU slice, such "
               "as v5e:4x4: the update is then compiled by the compiler of TPUs, too, where libtpu "
               "is installed ('jax_massact[tpu-aot]')", required=True, metavar="NAME"),
        option("--json", "also write the plan to this file", metavar="FILE"),
    )


_BENCH_JSON = option("--json", "also write the figures to this file", metavar="FILE")


def _bench_train() -> tuple[Option | Group, ...]:
    return (
        _BENCH_JSON,
        option(
            "--variants", "attention variants; the others are compared with the first "
            "(%(default)s)", metavar="NAMES", default="standard,kv_bias,sink",
        ),
        option(
            "--meshes", "time every variant on each of these meshes, such as "
            "'data=1;data=8;fsdp=8', with batch_size sequences on each device: the rest against "
            "the first", metavar="MESH;...",
        ),
        option(
            "--reference", "a checkout of https://github.com/locuslab/massive-activations: also "
            "time its GPT-2 models under torch.compile", metavar="FOLDER",
        ),
        option(
            "--python", "a Python that has torch, for --reference (this one)", metavar="PYTHON",
            default=sys.executable,
        ),
        option("--steps", "steps in a window (20)", type=whole, default=20, metavar="N"),
        option(
            "--windows", "windows, whose median is reported (4)", type=whole, default=4, metavar="N"
        ),
        option(
            "--profile", "list the N kernels that take most of a step, in the JSON file (0)",
            type=whole, default=0, metavar="N",
        ),
    )


def _bench_probe() -> tuple[Option | Group, ...]:
    from jax_massact.bench.device_probe import SHAPES

    return (
        option("model", f"{_MODEL_HELP}; or random:SHAPE ({', '.join(SHAPES)})", metavar="MODEL"),
        _BENCH_JSON,
        option(
            "--reference", "a Python with torch, transformers, accelerate and gguf: also time the "
            "authors' way (GGUF files only) and compare its numbers; of random:vit-l14 one with "
            "torch and timm, whose model is timed under torch.compile", metavar="PYTHON",
        ),
        option(
            "--mesh", "random weights: the devices that share the model, such as model=2 (one "
            "device)", metavar="MESH", default="data=1",
        ),
        option("--repeat", "runs of each (3)", type=whole, default=3, metavar="N"),
    )


def _bench_stream() -> tuple[Option | Group, ...]:
    from jax_massact.bench.device_probe import SHAPES

    return (
        option(
            "model", "a folder with config.json and safetensors; or random:SHAPE "
            f"({', '.join(name for name in SHAPES if not name.startswith('vit'))}), which is "
            "written first and removed at the end", metavar="MODEL",
        ),
        _BENCH_JSON,
        option(
            "--folder", "where random weights are written (a temporary folder)", metavar="DIR",
        ),
        option(
            "--filled", "random weights: how many of the first blocks have numbers; the others are "
            "holes in the files, which take no room (0: all have)", type=whole, default=0,
            metavar="N",
        ),
        option(
            "--kept", "read so many blocks into the host's memory and use them in turn, in this "
            "process: time and memory of the device without a disk (0: not)", type=whole, default=0,
            metavar="N",
        ),
        option(
            "--loaded", "also the probe of the loaded model, where it fits (yes)",
            action=argparse.BooleanOptionalAction, default=True,
        ),
        option(
            "--reference", "a Python with torch, transformers and accelerate: also time the "
            "authors' way, with blocks that are offloaded to the disk", metavar="PYTHON",
        ),
        option(
            "--reference-dtype", "in which it computes (%(default)s)", metavar="DTYPE",
            default="bfloat16", choices=("float32", "bfloat16", "float16"),
        ),
    )


def _list() -> tuple[Option | Group, ...]:
    from jax_massact.cli.listing import TABLES

    return (
        option("what", f"one or more of: {', '.join(TABLES)} (all)", metavar="WHAT", nargs="*"),
    )


def _completion() -> tuple[Option | Group, ...]:
    import shtab

    shells = shtab.SUPPORTED_SHELLS
    return (option("shell", f"one of: {', '.join(shells)}", metavar="SHELL", choices=shells),)


_TRAIN_CONFIG = "jax_massact.train.config:TrainConfig"
COMMANDS = {name: _study(name, study) for name, study in STUDIES.items()} | {
    "train": Command(
        "train a model with a chosen attention and watch massive activations form",
        "massact train --config=configs/gpt2_tiny.py:kv_bias --workdir=runs/kv_bias",
        "jax_massact.cli.run:train", _TRAIN_CONFIG, _train,
        """Trains a model, or resumes the run that is in the folder. Before the first step it
prints where every parameter lives and what memory a step takes.

Ends with 0; 75: stopped by SIGTERM or because a process has died, the same command
resumes the run; 130: stopped by Ctrl-C; 2: an error that the user can fix.""",
        needs_config=True,
    ),
    "compare": Command(
        "train the variants of one configuration, or read finished runs, and compare them",
        "massact compare --config=configs/gpt2_tiny.py --seeds=3 --workdir=runs/tiny",
        "jax_massact.cli.run:compare", _TRAIN_CONFIG, _compare,
    ),
    "plan": Command(
        "memory, traffic and time of a training run on devices that are not here",
        "massact plan --config=configs/llama_7b.py:standard --device=v5p:8x8x4",
        "jax_massact.cli.run:plan", _TRAIN_CONFIG, _plan,
        """Compiles one step for as many simulated devices, and runs nothing: memory of each
device, what is sent between them, bounds of a step's time and of MFU. For the topology of a TPU
slice the very update that will run is compiled, too, by libtpu: its memory, its collectives, which
of them are asynchronous. What does not fit is told by how much, and what would.

The file's mesh, where it is for another number of devices, takes along data what its other
axes leave. Ends with 0; 1: it does not fit into the memory; 2: an error that the user can fix.""",
        needs_config=True,
    ),
    "bench train": Command(
        "one training step of each variant, random tokens, each in a process of its own; the "
        "default is GPT-2 124M",
        "massact bench train --config.batch_size=32 --json=train.json",
        "jax_massact.cli.run:bench_train", _TRAIN_CONFIG, _bench_train,
    ),
    "bench attention": Command(
        "each variant of attention in each implementation that runs here: time, and error against "
        "float64",
        "massact bench attention --config.length=512 --json=attention.json",
        "jax_massact.cli.run:bench_attention", "jax_massact.bench.attention:AttentionShape",
        lambda: (_BENCH_JSON,),
    ),
    "bench probe": Command(
        "the whole probe command, against logits only and against the authors' way; or, of random "
        "weights, the probe on the device",
        "massact bench probe smollm2-135m --repeat=3 --json=probe.json",
        "jax_massact.cli.run:bench_probe", "jax_massact.studies.probe.settings:ProbeConfig",
        _bench_probe,
    ),
    "bench stream": Command(
        "the probe of a model that is read block by block, against reading its file, the "
        "arithmetic of its matmuls, the loaded model and the authors' way",
        "massact bench stream random:llama2-7b --config.dtype=bfloat16 --json=stream.json",
        "jax_massact.cli.run:bench_stream", "jax_massact.studies.probe.settings:ProbeConfig",
        _bench_stream,
    ),
    "list": Command(
        "what there is: formats, families, variants, resources, sources, tokenizers, configs",
        "massact list variants", "jax_massact.cli.run:listing", "", _list,
    ),
    "completion": Command(
        "a script that lets a shell complete commands, options and settings",
        'eval "$(massact completion bash)"', "jax_massact.cli.run:completion", "", _completion,
    ),
}
# Commands that are families of commands.
FAMILIES = {"bench": "measure speed and memory on this machine"}


def load(name: str) -> Any:
    """What "module:name" stands for: the one place where a command's imports happen."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
