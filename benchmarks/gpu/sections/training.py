"""One MDT step of a stage at TRELLIS's size, on random weights and data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import fewstep_mdt
import torch
from fewstep_mdt.config import MDTConfig
from fewstep_mdt.vd import MDT
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.slat import StructuredLatentFlow
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.clock import Run
from benchmarks.gpu.sections import models
from benchmarks.gpu.sections.baseline import eager
from benchmarks.gpu.voxels import fresh, object_layout, voxels_for
from fewstep.config.base import read_toml
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import Step, means
from fewstep.engine.networks import Networks
from fewstep.errors import FewstepError

PRESETS = Path(fewstep_mdt.__file__).parent / "presets/mdt-vd/mdt-dist"
STAGES: dict[str, Any] = {"ss": StructureFlow, "slat": StructuredLatentFlow}
ROLES = {"ss": "sparse_structure_flow_model", "slat": "slat_flow_model"}
SCALES = (2.0**16, 2.0**12, 2.0**8, 1.0)  # loss scales, tried until no gradient overflows float16


class Training:
    """One stage's step.

    Args:
        stage: "ss" or "slat".
        samples: samples per batch.
        kind: ``kind`` of the objective.
        recompute: activation checkpointing of the student, as ``backbone.recompute``.
    """

    def __init__(self, bench: Bench, stage: str, samples: int, kind: str = "discrete", recompute: str = "none") -> None:
        self.bench, self.stage = bench, stage
        config = {**read_toml(PRESETS / f"{stage}.toml")["objective"], "kind": kind}
        self.objective = MDT(MDTConfig(**config))
        network: Any = models.model(bench, ROLES[stage])
        backbone = STAGES[stage](network)
        backbone.recompute = recompute
        self.teacher = Teacher(backbone, Guidance())
        self.nets = Networks(self.objective.networks(), self.teacher, bench.device)
        self.student = self.nets.trained["student"]
        self.batch, self.words = self._batch(samples, network.args)
        self.optimizer: torch.optim.Optimizer | None = None
        self.scale = 1.0

    def _batch(self, samples: int, args: dict[str, Any]) -> tuple[Batch, str]:
        bench, channels = self.bench, args["in_channels"]
        cond = Condition(bench.randn(samples, bench.sizes(models.TOKENS, 9), args["cond_channels"]))
        if self.stage == "ss":
            size = args["resolution"]
            x = bench.randn(samples, channels, size, size, size)
            return Batch(x, Dense(samples), cond), f"ss, batch {samples} of {size}^3 tokens"
        edge = args["resolution"]
        counts = [voxels_for(n, edge) for n in bench.sizes((8192, 5000), (60, 40))[:samples]]
        layout = object_layout(bench, counts, edge)
        return Batch(bench.randn(layout.rows, channels), layout, cond), f"slat, batch {samples}, {layout.rows} voxels"

    def gradients(self) -> dict[str, Tensor]:
        """Forward and backward of one step, with empty caches of layout and condition; returns the gradients."""
        self.student.zero_grad(set_to_none=True)
        layout = self.batch.layout
        batch = Batch(
            self.batch.x0, fresh(layout) if isinstance(layout, Packed) else layout, Condition(self.batch.cond.tokens)
        )
        step = Step(0, self.teacher.interpolant, seed=3, device=self.bench.device)
        losses = means(self.objective.loss(batch, self.nets.view, step))
        (torch.stack(list(losses.values())).sum() * self.scale).backward()
        return {n: p.grad for n, p in self.student.named_parameters() if p.grad is not None}

    def run(self, baseline: bool) -> Run:
        """The call to time: a whole step under autocast, with the optimiser's update (at learning rate 0)."""
        device = self.bench.device
        self.optimizer = self.optimizer or torch.optim.AdamW(
            self.student.parameters(), lr=0.0, fused=device.type == "cuda"
        )

        def step() -> None:
            with self.mode(baseline):
                self.gradients()
            assert self.optimizer is not None
            self.optimizer.step()

        return step

    @contextmanager
    def mode(self, baseline: bool, exact: bool = False) -> Iterator[None]:
        """The context of a step: ours or the eager baseline, under autocast unless ``exact``."""
        device = self.bench.device
        with ExitStack() as stack:
            if baseline:
                stack.enter_context(eager(device))
            if not exact:
                stack.enter_context(torch.autocast(device.type, torch.float16))
            if exact:
                stack.enter_context(sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]))
            yield

    def fit_scale(self) -> float:
        """Set and return the largest loss scale with finite gradients. Raises FewstepError if there is none."""
        for self.scale in SCALES:
            with self.mode(False):
                if all(bool(g.isfinite().all()) for g in self.gradients().values()):
                    return self.scale
        raise FewstepError("no loss scale has finite gradients")
