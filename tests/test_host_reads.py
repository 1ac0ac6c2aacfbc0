"""The training loop does not wait for the device: what the host reads, and when a loss that is no number is found.

A GPU is stood in for by numbers that arrive when the test says so, and by counting every way in which a tensor's
value reaches Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from engine_helpers import OBJECTIVES, Regress, trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.config.train import TrainConfig
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.dataset import Dataset
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Packed
from fewstep.core.objective import Objective, Step
from fewstep.engine import trainer as trainers
from fewstep.engine.readback import Readback
from fewstep.engine.trainer import AHEAD, NonFinite, Trainer
from fewstep.plugins.registry import registry
from fewstep.testing import TinyBackbone, tiny_batch


class Reads(TorchDispatchMode):
    """Counts the values that reach Python: ``item``, ``float``, ``bool``, ``tolist``, ``numpy``, ``nonzero``."""

    ops = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.ops
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    with Reads() as reads, monkeypatch.context() as patch:
        for name in ("tolist", "numpy", "cpu"):  # on a CPU these pass by the dispatcher
            real = getattr(Tensor, name)

            def noted(*args: Any, real: Any = real, **kwargs: Any) -> Any:
                reads.count += 1
                return real(*args, **kwargs)

            patch.setattr(Tensor, name, noted)
        yield reads


class Late(Readback):
    """Numbers that arrive only when they are waited for."""

    arrived = False  # type: ignore[assignment]


class Samples(Dataset):
    """The same samples each time."""

    packed = False

    def __len__(self) -> int:
        return 3

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        return KEPT[self.packed]

    def training_batch(self, *_: Any, **__: Any) -> Batch:  # without the order of the samples, which the host draws
        return KEPT[self.packed]


KEPT = [tiny_batch(packed=packed, dtype=torch.float32) for packed in (False, True)]


def objectives() -> list[str]:
    """One name of each, without those that store pairs before they train."""
    found = {name: registry().get("objective", name).load() for name in registry().names("objective")}
    ours = {one: name for name, one in found.items() if not name.startswith("tiny") and one.data is Objective.data}
    return sorted(ours.values())


def run_of(name: str, packed: bool = False) -> Trainer:
    objective: Any = registry().get("objective", name).load()
    config = TrainConfig(steps=6, device="cpu", clip="adaptive", clip_buffer=2, ema=(0.9,), checkpoint_every=100)
    backbone = TinyBackbone()
    data = Samples(None, backbone)
    data.packed = packed
    return Trainer(objective(objective.Config()), Teacher(backbone, Guidance(2.0)), data, config, say=lambda _: None)


def fuse(run: Trainer) -> None:
    """AdamW as on CUDA; the other one looks at a counter that it keeps on the CPU."""
    for one in run.optimizers.values():
        one.adam = torch.optim.AdamW(one.named.values(), lr=1e-4, fused=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", objectives())
def test_a_step_reads_nothing(name: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(name, packed)
    fuse(run)
    run._iteration(0)  # derivatives are tried once, layouts are looked at once
    with counted(monkeypatch) as reads:
        for step in range(1, 4):
            run._iteration(step)
    assert reads.count == 0
    assert [row["step"] for row in run._settled(everything=True)] == [1, 2, 3, 4]


def test_the_counter_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(3)
    with counted(monkeypatch) as reads:
        assert float(x[0]) == x[1].item() == x.tolist()[0] == x.numpy()[0] == x.cpu()[0]
        assert x.any()
    assert reads.count >= 6


def test_rows_come_late_in_order_and_all_before_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, said = trainer(steps=8, checkpoint_every=4), []
    expected: list[Any] = []
    plain.train(expected.append, lambda: None)
    monkeypatch.setattr(trainers, "Readback", Late)
    late = trainer(steps=8, checkpoint_every=4)
    iteration = late._iteration
    monkeypatch.setattr(late, "_iteration", lambda step: (said.append(f"begin {step + 1}"), iteration(step)))
    rows: list[Any] = []
    late.train(lambda row: (said.append(row["step"]), rows.append(row)), lambda: said.append("save"))
    first = ["begin 1", "begin 2", "begin 3", 1, "begin 4", 2, 3, 4, "save"]
    assert said[: len(first)] == first
    assert AHEAD == 2
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in expected]


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_no_number_is_told_by_its_own_step(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bad(Regress):
        def loss(self, batch: Any, nets: Any, step: Any) -> dict[str, Tensor]:
            return {
                name: term * (math.nan if step.index == 3 else 1)
                for name, term in super().loss(batch, nets, step).items()
            }

    monkeypatch.setitem(OBJECTIVES, "tiny-bad", Bad)
    if late:
        monkeypatch.setattr(trainers, "Readback", Late)
    run, rows, saved = trainer("tiny-bad", steps=10, checkpoint_every=5), [], []
    with pytest.raises(NonFinite, match="step 4: loss term 'fit' is nan"):
        run.train(rows.append, lambda: saved.append(run.step))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert (run.step, saved) == (3, [])


def test_a_layout_moves_without_a_look_at_its_boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Packed.of_lengths([2, 0, 3], torch.zeros(5, 3, dtype=torch.int64))
    with counted(monkeypatch) as reads:
        there = layout.to("meta")
        same = Packed.of_lengths([2, 0, 3])
    assert reads.count == 0
    assert there.lengths_list == same.lengths_list == [2, 0, 3]
    assert (there.index.shape, there.index.device.type, same.index.tolist()) == ((5,), "meta", [0, 0, 2, 2, 2])


def test_a_choice_is_the_hosts_and_the_same_each_time() -> None:
    steps = [Step(index, Interpolant(), device="meta") for index in range(50)]
    chosen = [step.choice((1.0, 2.0, 3.0), "name") for step in steps]
    assert set(chosen) == {1.0, 2.0, 3.0}
    assert chosen == [step.choice((1.0, 2.0, 3.0), "name") for step in steps]
