"""``python -m benchmarks.scale.once PEAKS WORDS...``: runs ``fewstep WORDS``, writes its peak resident memory to PEAKS.

The peak is Linux's high-water mark (VmHWM) over the training loop with its checkpoints, reset when the loop begins.
PEAKS is a folder; each process writes a file named after its rank.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from fewstep.cli import main
from fewstep.engine.trainer import Trainer


def measured(train: Any) -> Any:
    def measure(self: Trainer, *args: Any) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        train(self, *args)

    return measure


if __name__ == "__main__":
    Trainer.train = measured(Trainer.train)  # type: ignore[method-assign]
    code = main(sys.argv[2:])
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    (Path(sys.argv[1]) / os.environ.get("RANK", "0")).write_text(peak.split()[1])
    sys.exit(code)
