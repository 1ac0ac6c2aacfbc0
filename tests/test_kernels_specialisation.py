"""A second use with other lengths asks for the same binaries; the smallest of calls ask for some that compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_other_lengths_ask_for_the_same_binaries_and_odd_ones_compile() -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FEWSTEP_OPS")}
    script = Path(__file__).with_name("kernel_specialisation.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[-1] for line in lines] == ["True"] * len(lines)
    # Forward, tangent; backward in two ways: delta, queries, keys, and delta, keys. Short sequences, then long ones.
    assert [line[1] for line in lines if line[0] == "attention"] == ["7"] * 4
    # The map in two launches, order, tiles, pairs, and two products; windows before and after their sort.
    assert [line[1] for line in lines if line[0] == "convolution"] == ["7", "7"]
    assert [line[1] for line in lines if line[0] == "windowed"] == ["2", "2"]
    # Three ops, packed and dense: value and tangent, value, gradients.
    assert [line[1] for line in lines if line[0] == "norms"] == ["18"] * 3
    # Attention, convolution, windows and norms as above, each binary once.
    assert [line[1] for line in lines if line[0] == "smallest"] == ["30"]
