"""Checkpoints of a run, by Orbax: written while training goes on, checked when they are read."""

import hashlib
import json
import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jax_massact.errors import UserError
from jax_massact.train.config import CheckpointConfig, TrainConfig, check_same_run, to_json
from jax_massact.train.step import State

DIGESTS = "digests.json"
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in one folder. Use it as a context manager: leaving waits for the last one.

    A checkpoint that was not finished does not count. Orbax does not see flipped bits, so every
    finished one gets a file of SHA-256 digests; one that no longer agrees with them is renamed to
    `STEP.damaged` and the one before it is used.

    Args:
      folder: made when missing.
      config: how many to keep.

    Raises:
      UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, config: CheckpointConfig):
        import orbax.checkpoint as ocp

        self._folder = folder.absolute()
        self._unsigned: int | None = None
        self._signing: threading.Thread | None = None
        self.damaged = _set_aside_damaged(self._folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep, keep_period=config.keep_every or None
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
        """Begins to write `state`; returns when the devices may use its memory again."""
        import orbax.checkpoint as ocp

        if step in self.steps:
            return
        self._finish()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_named(state)),
                config=ocp.args.JsonSave(json.loads(to_json(config))),
            ),
            force=True,
        )
        self._unsigned = step

    def restore(self, abstract: State, config: TrainConfig) -> State | None:
        """The newest state, laid out as `abstract`; None where there is none yet.

        Raises:
          ConfigError: it belongs to a run with other settings.
          UserError: there are checkpoints, and none can be read.
        """
        import orbax.checkpoint as ocp

        if not self.steps:
            if self.damaged:
                raise UserError(
                    f"{self._folder}: every checkpoint is damaged ({', '.join(self.damaged)}); "
                    "remove them to begin anew"
                )
            return None
        step = self.steps[-1]
        read = lambda **items: self._manager.restore(step, args=ocp.args.Composite(**items))
        try:
            before = read(config=ocp.args.JsonRestore())["config"]
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(step, error) from None
        check_same_run(config, before, str(self._folder.parent))
        try:
            leaves = read(state=ocp.args.StandardRestore(_named(abstract)))["state"]
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(step, error) from None
        return jax.tree.unflatten(
            jax.tree.structure(abstract), [leaves[name] for name in _named(abstract)]
        )

    def _unreadable(self, step: int, error: Exception) -> UserError:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return UserError(
            f"{self._folder / str(step)} cannot be read: {line}. Remove it to go on from the "
            "checkpoint before it"
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._finish()
        if self._signing is not None:
            self._signing.join()
        self._manager.close()

    def _finish(self) -> None:
        """Waits for the checkpoint that is being written, and has its digests made."""
        self._manager.wait_until_finished()
        if self._signing is not None:
            self._signing.join()
        if self._unsigned is not None and jax.process_index() == 0:
            folder = self._folder / str(self._unsigned)
            self._signing = threading.Thread(target=_sign, args=(folder,), name="digests")
            self._signing.start()
        self._unsigned = None


def _named(state: State) -> dict[str, Any]:
    """Every array by its path: what is on disk does not depend on the classes of the optimizer."""
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
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
        # Without digests: the run was killed before they were made; the checkpoint is whole.
        if not stated.exists() or _agree(stated):
            break
        aside = step.with_name(f"{step.name}.damaged")
        if jax.process_index() == 0:
            step.rename(aside)
        _log.warning("checkpoint %s is damaged; it is now called %s", step, aside.name)
        damaged.append(aside.name)
    return damaged


def _agree(stated: Path) -> bool:
    try:
        return json.loads(stated.read_text()) == _digests(stated.parent)
    except (OSError, ValueError):
        return False
