"""One run at a time in a folder.

The library `filelock` takes the same lock, but does not tell who holds it, and where a file system
has no locks it fails or leaves a file that outlives a killed run. Hence `flock` itself.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from jax_massact.errors import UserError

FILE = "lock"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds `folder/lock`, which names its holder; the system releases it when the process dies.

    The lock is `flock`'s, which Linux passes on to NFS and most cluster file systems, so that it
    also holds between hosts. Where a file system has no locks, the run continues with a warning.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    path = folder / FILE
    try:
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by {_holder(path)}; wait for it or stop it, or "
                            "choose another --workdir") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise UserError(f"cannot lock {path}: {error.strerror}") from None
            _log.warning("%s: this file system has no locks; nothing keeps a second run out", path)
        try:
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}) + "\n")
            file.flush()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
        # The file stays: to remove it would let two runs lock two files of this name.
        yield


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        return f"process {found['process']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
