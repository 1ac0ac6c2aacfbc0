"""``python -m benchmarks.scale.once PEAKS WORDS...``: ``fewstep WORDS``, whose peak resident memory is noted in PEAKS.

The peak is the kernel's high-water mark (VmHWM, Linux) of the training loop with its checkpoints, set back as the loop
begins. Under torchrun each process writes a file of its own, named by its rank.
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
