"""Runs of several processes: the same numbers as one process, resumed by any number of them, and ended in order."""

from __future__ import annotations

from pathlib import Path

import pytest
from parallel_helpers import apart, distilled


@pytest.mark.parametrize(
    ("method", "kind", "keys"),
    [
        ("mdt-vd", "ddp", ("data.layout=packed",)),
        ("meanflow", "fsdp", ()),
        ("dmd2", "fsdp", ("data.layout=packed", "objective.gan=0.01", "objective.critic_ratio=2")),
    ],
)
def test_two_processes_train_what_one_trains(tmp_path: Path, method: str, kind: str, keys: tuple[str, ...]) -> None:
    assert distilled(1, tmp_path / "one", method, *keys) == [0]
    assert distilled(2, tmp_path / "two", method, *keys, f"parallel.kind={kind}") == [0, 0]
    assert apart(tmp_path / "one", tmp_path / "two") < 1e-6
