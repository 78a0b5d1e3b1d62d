"""Plans are made in processes of their own, which take no chips of this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from jax_massact.errors import ConfigError, UserError
from jax_massact.plan.topology import ENVIRONMENT


def in_process(module: str, *arguments: str) -> Any:
    """What a module of this room prints as JSON, in a process that takes no chips of this machine.

    Raises:
      ConfigError: the module says what the user can fix.
      UserError: the process failed.
    """
    # Flags of this process, say for its own accelerator, are not for that one.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", f"jax_massact.plan.{module}", *arguments],
        capture_output=True, text=True, env=environment | ENVIRONMENT,
    )
    last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    if done.returncode == 2:
        raise ConfigError(last)
    if done.returncode:
        raise UserError(f"the plan could not be made (exit code {done.returncode}): {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def answer(make: Callable[[], Any]) -> int:
    """The other end of `in_process`: prints what `make` gives, or an error that the user can fix.

    Returns:
      The process's exit code.
    """
    try:
        made = make()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(made))
    return 0
