"""Runs a command and prints its seconds, peak memory and exit code as JSON, its output thrown away.

    python measure.py COMMAND [ARGUMENT ...]

A process of its own, because a child's peak memory starts from that of the process that it is
forked from, which here is small. The last lines of the command's standard error are passed on.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

LAST_LINES = 3


def main(command: list[str]) -> None:
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-LAST_LINES:]
    # Linux counts in KiB, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"wall": wall, "peak": peak, "code": process.returncode, "last": last}))


if __name__ == "__main__":
    main(sys.argv[1:])
