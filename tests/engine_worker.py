"""A host process that imports torch once and forks a child a run, so that the tests can kill many.

Reads a JSON request a line: {"out": folder, "keys": [overrides], "objective": name, "resume": bool, "slow": seconds};
answers the child's process id, and its exit status when it has ended.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import engine_helpers
import torch
import torch._dynamo  # the first optimiser imports it: two seconds that a child would spend each time
from rich.console import Console
from safetensors.torch import save

from fewstep import files as atomic
from fewstep.engine import session, store


def slow_disk(seconds: float) -> None:
    """Stretch every write: tensors appear half by half, and each sync takes its time."""

    def save_slowly(tensors: dict[str, torch.Tensor], path: Path) -> None:
        data = save(tensors)
        with path.open("wb") as file:
            for part in (data[: len(data) // 2], data[len(data) // 2 :]):
                file.write(part)
                file.flush()
                time.sleep(seconds)

    synced = atomic.sync

    def sync_slowly(path: Path) -> None:
        time.sleep(seconds / 4)
        synced(path)

    store.save_file = save_slowly
    atomic.sync = sync_slowly


def distil(request: dict[str, Any]) -> None:
    """One run, in the child."""
    if request["slow"]:
        slow_disk(request["slow"])
    resolved = engine_helpers.resolve(request["objective"], "tiny", layers=request["keys"])
    session.start(resolved, Path(request["out"]), request["resume"], Console(file=io.StringIO()))


def child(request: dict[str, Any]) -> None:
    status = 1
    try:
        distil(request)
        status = 0
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def main() -> None:
    torch.set_num_threads(1)
    engine_helpers.install()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
