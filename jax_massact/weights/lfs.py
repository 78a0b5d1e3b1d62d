"""Git LFS pointers: the small files that a clone without git-lfs has in place of large ones."""

_MARK = b"version https://git-lfs.github.com/spec/"
HEAD_BYTES = len(_MARK)


def pointer_problem(head: bytes) -> str | None:
    """The text of an error if a file that begins with `head` is a pointer."""
    if not head.startswith(_MARK):
        return None
    return (
        "is a Git LFS pointer, which stands for a file that was not downloaded; expected: the file "
        "itself. Install git-lfs and run `git lfs pull` in its folder"
    )
