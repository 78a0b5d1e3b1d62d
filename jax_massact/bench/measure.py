"""Runs a command, its output thrown away; prints its time, peak memory and exit code as JSON.

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
INTERVAL_S = 0.02


def main(command: list[str]) -> None:
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        anonymous = 0
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            anonymous = max(anonymous, anonymous_bytes(process.pid))
            time.sleep(INTERVAL_S)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-LAST_LINES:]
    # Linux counts in KiB, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({
        "wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": peak,
        "anonymous": anonymous, "code": process.returncode, "last": last,
    }))


def anonymous_bytes(pid: int) -> int:
    """Memory that no file backs; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:")) * 1024
    except (OSError, StopIteration):
        return 0


if __name__ == "__main__":
    main(sys.argv[1:])
