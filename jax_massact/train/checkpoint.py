"""Checkpoints of a run, by Orbax: written while training continues, checked when they are read."""

import contextlib
import itertools
import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jax_massact.cluster.exits import is_loss
from jax_massact.cluster.sharing import is_first, on_first, together
from jax_massact.errors import ConfigError, UserError
from jax_massact.nn.transformer import from_parameters
from jax_massact.train.checksum import checksums
from jax_massact.train.config import CheckpointConfig, TrainConfig, to_json
from jax_massact.train.resume import check_data, check_settings
from jax_massact.train.step import State
from jax_massact.weights.digests import DIGESTS, damaged_files, file_digests

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in one folder. Use it as a context manager: leaving waits for the last one.

    A checkpoint counts if it is whole and as it was saved:

    - Orbax gives it its name once every process has finished writing. Unfinished ones are removed
      by the next start.
    - It holds a checksum of every array, made on the devices when it was saved, and compared with
      the restored array (`checksum.checksums`), on any mesh.
    - Orbax does not see flipped bits in a file, so process 0 adds a SHA-256 digest of every file
      once the checkpoint has its name. The next start compares them before it reads anything.

    A checkpoint that fails any of this is renamed to `STEP.damaged`, and the one before it is used.

    Args:
      folder: made when missing. Only one run at a time may use it (`lock.lock`).
      config: how many to keep.

    Attributes:
      damaged: the present names of those that were found damaged on this start.

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
        """The steps that have a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: State, config: TrainConfig, digests: Mapping[str, str]
    ) -> None:
        """Begins to write `state`; returns when the devices may use its memory again.

        Args:
          step: updates made so far.
          state: what is saved.
          config: the settings that it depends on, saved with it.
          digests: those of its data, as `Batches.digests`, saved with it.

        Raises:
          UserError: this one, or the one that was begun before it, cannot be written.
        """
        import orbax.checkpoint as ocp

        if step in self.steps:
            return
        self._finish()
        arrays = _named(_saved(state))
        # Where another process is gone, this says so: nothing was wrong with writing.
        found = checksums(arrays)
        with self._writing(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    config=ocp.args.JsonSave(json.loads(to_json(config))),
                    data=ocp.args.JsonSave(dict(digests)),
                    checksums=ocp.args.JsonSave(found),
                ),
                force=True,
            )
        self._unsigned = step

    def restore(
        self, abstract: State, config: TrainConfig, digests: Mapping[str, str]
    ) -> State | None:
        """The newest good state, laid out as `abstract`; None where there is none yet.

        Raises:
          ConfigError: it belongs to a run with other settings or other data.
          UserError: there are checkpoints, and none can be read.
        """
        while self.steps:
            step = self.steps[-1]
            try:
                return together(lambda step=step: self._read(step, abstract, config, digests))
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
                "remove them to start over"
            )
        return None

    def _read(
        self, step: int, abstract: State, config: TrainConfig, digests: Mapping[str, str]
    ) -> State:
        import orbax.checkpoint as ocp

        def read(**items: Any) -> Any:
            try:
                return self._manager.restore(step, args=ocp.args.Composite(**items))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(_first_line(error)) from None

        before = read(config=ocp.args.JsonRestore())["config"]
        where = str(self._folder.parent)
        check_settings(config, before, step, where)
        # Runs of earlier versions have no digests of their data, or no checksums.
        if (self._folder / str(step) / "data").exists():
            check_data(digests, read(data=ocp.args.JsonRestore())["data"], where)
        wanted = _saved(abstract)
        arrays = read(state=ocp.args.StandardRestore(_named(wanted)))["state"]
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
            _log.warning("%s", failed)  # the first error is the one to fix
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

    Orbax's threads also come here in a `finally`, while the other processes wait elsewhere until
    the failed file is written: for 20 minutes, after which nobody says what was wrong.
    """
    import orbax.checkpoint as ocp

    if (error := sys.exc_info()[1]) is not None:
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _cause(error: BaseException) -> str:
    """The end of a message of TensorStore, which begins with long paths."""
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
        digests = json.dumps(file_digests(folder), indent=2)
        part = folder / f"{DIGESTS}.part"
        part.write_text(digests + "\n")
        part.replace(folder / DIGESTS)
    except FileNotFoundError:
        # A newer checkpoint has replaced it meanwhile.
        return
    except OSError as error:
        # The arrays have their checksums; a full disk stops the next checkpoint.
        _log.warning("cannot write digests to %s: %s", folder, error.strerror or error)


def _set_aside_damaged(folder: Path) -> list[str]:
    """Renames the newest checkpoints until one agrees with its digests; returns their new names."""
    steps = sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: -int(p.name))
    damaged: list[str] = []
    for step in steps:
        # Without digests: the run was killed before they were made. The arrays have checksums.
        if not (step / DIGESTS).exists() or not (wrong := damaged_files(step)):
            break
        damaged.append(_set_aside(step, f"not as written: {', '.join(wrong)}"))
    return damaged


def _set_aside(step: Path, why: str) -> str:
    """Renames a damaged checkpoint, so that nothing is lost; returns its new name."""
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
    """Names of the damaged checkpoints, newest first."""
    found = {path.name: path.name.partition(".")[0] for path in folder.glob("*.damaged*")}
    return sorted(found, key=lambda name: (-int(found[name]), name))
