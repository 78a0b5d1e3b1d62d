"""Checkpoints of a run, by Orbax: written while training goes on, checked when they are read."""

import contextlib
import hashlib
import itertools
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jax_massact.cluster.exits import is_loss
from jax_massact.cluster.sharing import is_first, on_first, together
from jax_massact.errors import ConfigError, UserError
from jax_massact.nn.transformer import from_parameters
from jax_massact.train.checksum import checksums
from jax_massact.train.config import (
    CheckpointConfig,
    TrainConfig,
    check_same_run,
    to_json,
)
from jax_massact.train.step import State

DIGESTS = "digests.json"
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in one folder. Use it as a context manager: leaving waits for the last one.

    What counts is whole and as it was saved:

    - Orbax gives a checkpoint its name once every process has finished writing. What was not
      finished is removed by the next run.
    - Each holds a checksum of every array, made on the devices when it was saved, and compared with
      what was restored (`checksum.checksums`). It does not depend on the mesh, so that it holds on
      another one, too.
    - Orbax does not see flipped bits in a file, so process 0 adds a SHA-256 digest of every file
      once the checkpoint has its name. The next run compares them before it reads anything.

    One that fails any of this is renamed to `STEP.damaged`, and the one before it is used.

    Args:
      folder: made when missing. Only one run at a time may use it (`lock.lock`).
      config: how many to keep.

    Attributes:
      damaged: the names that those found damaged by this run have now.

    Raises:
      UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, config: CheckpointConfig):
        import orbax.checkpoint as ocp

        self._folder = folder.absolute()
        self._unsigned: int | None = None
        self._signing: threading.Thread | None = None
        self.damaged: list[str] = on_first(lambda: _set_aside_damaged(self._folder))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep,
            keep_period=config.keep_every or None,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(barrier_sync_fn=_meet),
        )
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from None

    @property
    def steps(self) -> list[int]:
        """The steps that there is a checkpoint of, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, config: TrainConfig) -> None:
        """Begins to write `state`; returns when the devices may use its memory again.

        Raises:
          UserError: this one, or the one that was begun before it, cannot be written.
        """
        import orbax.checkpoint as ocp

        if step in self.steps:
            return
        self._finish()
        arrays = _named(_saved(state))
        with self._writing(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    config=ocp.args.JsonSave(json.loads(to_json(config))),
                    checksums=ocp.args.JsonSave(checksums(arrays)),
                ),
                force=True,
            )
        self._unsigned = step

    def restore(self, abstract: State, config: TrainConfig) -> State | None:
        """The newest good state, laid out as `abstract`; None where there is none yet.

        Raises:
          ConfigError: it belongs to a run with other settings.
          UserError: there are checkpoints, and none can be read.
        """
        while self.steps:
            step = self.steps[-1]
            try:
                return together(lambda step=step: self._read(step, abstract, config))
            except ConfigError:
                raise
            except UserError as error:
                line = str(error)
            folder = self._folder / str(step)
            self.damaged.append(on_first(lambda f=folder, why=line: _set_aside(f, why)))
            self._manager.reload()
        # Also those that an earlier start has renamed: it was told to remove them first.
        if lost := on_first(lambda: _all_damaged(self._folder)):
            raise UserError(
                f"{self._folder}: every checkpoint is damaged ({', '.join(lost)}); "
                "remove them to begin anew"
            )
        return None

    def _read(self, step: int, abstract: State, config: TrainConfig) -> State:
        import orbax.checkpoint as ocp

        def read(**items: Any) -> Any:
            try:
                return self._manager.restore(step, args=ocp.args.Composite(**items))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(_first_line(error)) from None

        before = read(config=ocp.args.JsonRestore())["config"]
        check_same_run(config, before, str(self._folder.parent))
        wanted = _saved(abstract)
        arrays = read(state=ocp.args.StandardRestore(_named(wanted)))["state"]
        # Runs of earlier versions have none.
        if (self._folder / str(step) / "checksums").exists():
            stated = read(checksums=ocp.args.JsonRestore())["checksums"]
            found = checksums(arrays)
            if wrong := sorted(name for name in arrays if found[name] != stated.get(name)):
                raise UserError(f"not as they were saved: {', '.join(wrong)}")
        leaves = [arrays[name] for name in _named(wanted)]
        found = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
        return State(
            step=found["step"],
            halted=jax.device_put(False, abstract.halted.sharding),
            model=from_parameters(config.model, found["params"]),
            optimizer=found["optimizer"],
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._finish()
        except UserError as failed:
            if error is None:
                raise
            _log.warning("%s", failed)  # what went wrong first is what is to be put right
        finally:
            if self._signing is not None:
                self._signing.join()
            with contextlib.suppress(Exception):  # says once more what `_finish` has said
                self._manager.close()

    def _finish(self) -> None:
        """Waits for the checkpoint that is being written, and has its digests made."""
        unsigned, self._unsigned = self._unsigned, None
        if unsigned is not None:
            with self._writing(unsigned):
                self._manager.wait_until_finished()
        if self._signing is not None:
            self._signing.join()
        if unsigned is not None and is_first():
            # It has its name, so all processes are done with it.
            folder = self._folder / str(unsigned)
            self._signing = threading.Thread(target=_sign, args=(folder,), name="digests")
            self._signing.start()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if is_loss(error):
                raise
            good = [s for s in self.steps if s != step and (self._folder / str(s)).is_dir()]
            last = f"the last good one is of step {good[-1]}" if good else "there is none before it"
            raise UserError(
                f"cannot write the checkpoint of step {step} to {self._folder} "
                f"({_cause(error)}); {last}"
            ) from None


def _meet(*, key: str, timeout_ms: int) -> None:
    """Waits for the other processes, as Orbax does, unless writing has failed on this one.

    Orbax's threads come here in a `finally`, too, while the others wait, somewhere else, until what
    has failed is written: for 20 minutes, and then nobody says what was wrong.
    """
    import orbax.checkpoint as ocp

    if (error := sys.exc_info()[1]) is not None:
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _cause(error: BaseException) -> str:
    """The end of a line of TensorStore's, which begins with long paths."""
    return ": ".join(_first_line(error, 2000).split(": ")[-2:])


def _first_line(error: BaseException, most: int = 300) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:most] if lines else type(error).__name__


def _saved(state: State) -> dict[str, Any]:
    """What a checkpoint holds of a state; one that is saved was not halted."""
    return {"step": state.step, "params": state.params, "optimizer": state.optimizer}


def _named(tree: Any) -> dict[str, Any]:
    """Every array by its path: what is on disk does not depend on the classes of the optimizer."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _sign(folder: Path) -> None:
    try:
        digests = json.dumps(_digests(folder), indent=2)
        part = folder / f"{DIGESTS}.part"
        part.write_text(digests + "\n")
        part.replace(folder / DIGESTS)
    except FileNotFoundError:
        # A newer checkpoint has taken its place meanwhile.
        return
    except OSError as error:
        # The arrays have their checksums; a full disk stops the next checkpoint.
        _log.warning("cannot write digests to %s: %s", folder, error.strerror or error)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path in the folder."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(DIGESTS):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests


def _set_aside_damaged(folder: Path) -> list[str]:
    """Renames the newest checkpoints until one agrees with its digests; the names they have now."""
    steps = sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: -int(p.name))
    damaged: list[str] = []
    for step in steps:
        stated = step / DIGESTS
        # Without digests: the run was killed before they were made. The arrays have checksums.
        if not stated.exists():
            break
        if not (wrong := _disagree(stated)):
            break
        damaged.append(_set_aside(step, f"not as written: {', '.join(wrong)}"))
    return damaged


def _set_aside(step: Path, why: str) -> str:
    """Renames a damaged checkpoint, so that nothing is lost; the name that it has now."""
    names = (f"{step.name}.damaged{n or ''}" for n in itertools.count())
    aside = next(path for path in map(step.with_name, names) if not path.exists())
    try:
        step.rename(aside)
    except OSError as error:
        raise UserError(
            f"checkpoint {step} is damaged ({why}) and cannot be renamed: {error.strerror}"
        ) from None
    _log.warning("checkpoint %s is damaged (%s); it is now called %s", step, why, aside.name)
    return aside.name


def _all_damaged(folder: Path) -> list[str]:
    """The names of those that were set aside, newest first."""
    found = {path.name: path.name.partition(".")[0] for path in folder.glob("*.damaged*")}
    return sorted(found, key=lambda name: (-int(found[name]), name))


def _disagree(stated: Path) -> list[str]:
    """The files that are not what they were when their digests were made."""
    try:
        then, now = json.loads(stated.read_text()), _digests(stated.parent)
        return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    except (OSError, ValueError, AttributeError):
        return [DIGESTS]
