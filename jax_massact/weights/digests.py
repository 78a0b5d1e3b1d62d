"""SHA-256 digests of the files of a folder, in the folder itself."""

import hashlib
import json
from pathlib import Path

DIGESTS = "digests.json"


def file_digest(path: Path) -> str:
    """SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 digest of every file, by its path in the folder."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(DIGESTS):
            digests[path.relative_to(folder).as_posix()] = file_digest(path)
    return digests


def damaged_files(folder: Path) -> list[str]:
    """Names of the files that do not agree with the digests in the folder."""
    try:
        then, now = json.loads((folder / DIGESTS).read_text()), file_digests(folder)
        return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    except (OSError, ValueError, AttributeError):
        return [DIGESTS]
