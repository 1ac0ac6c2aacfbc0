"""Clipping, optimiser and EMA are a few calls to torch for all parameters together, so no graph holds them."""

from __future__ import annotations

import cProfile
import pstats
from typing import Any

import pytest
import torch
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.vd import MDT
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.models import SparseStructureFlowModel
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.config.base import Strict
from fewstep.config.train import TrainConfig
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense
from fewstep.engine.trainer import Trainer

BLOCKS = 24


class Calls(TorchDispatchMode):
    """Counts the operations of torch."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "aten"
        return func(*args, **(kwargs or {}))


class Latents(Dataset):
    def __len__(self) -> int:
        return 8

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        count = len(indices)
        x0 = torch.randn(count, 4, 2, 2, 2, generator=generator)
        return Batch(x0, Dense(count), Condition(torch.randn(count, 7, 32, generator=generator)))


def test_an_update_against_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on CUDA, where the norms of all gradients are one call.
    monkeypatch.setattr("torch.nn.utils.clip_grad._has_foreach_support", lambda tensors, device: True)
    model = SparseStructureFlowModel(2, 4, 64, 32, 4, BLOCKS, num_heads=2, patch_size=1, qk_rms_norm=True)
    flow = StructureFlow(model)
    config = TrainConfig(optimizer="fused", ema=(0.99,), steps=10, batch_size=2, device="cpu")
    run = Trainer(MDT(MDTConfig()), Teacher(flow, Guidance(3.0)), Latents(Strict(), flow), config, say=lambda _: None)

    def gradient() -> None:
        run.gradients.accumulate(run.objective.phase(1), 1)

    def update() -> None:
        run.optimizers["student"].update(1, run.scaler)
        run.nets.averages.update(("student",))

    gradient()
    update()
    with Calls() as of_gradient:
        gradient()
    with Calls() as of_update:
        update()
    gradient()
    with cProfile.Profile() as profile:
        update()
    assert of_update.count <= 20
    assert of_gradient.count >= 1000 * of_update.count
    assert pstats.Stats(profile).total_calls <= 6500
