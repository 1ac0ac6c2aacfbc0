"""Is a teacher worth distilling? It must follow its picture: its samples fit the pictured object clearly better than
samples made from another object's picture do."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.backbone import Guidance, Teacher
from fewstep.core.batch import Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.objective import Step
from fewstep.core.samplers import euler
from fewstep.core.times import step_grid
from fewstep_trellis.dataset import PreparedObjects
from fewstep_trellis.models import SparseStructureDecoder


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Volume IoU [B] of boolean grids [B, ...]."""
    both, either = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return both / either.clamp(min=1)


def sample(
    teacher: Teacher, decoder: SparseStructureDecoder, tokens: Tensor, noise: Tensor, steps: int, rescale_t: float = 1.0
) -> Tensor:
    """Occupancy [B, R, R, R] of samples from these tokens and this noise."""
    from fewstep.core.layout import Dense

    grid = step_grid(steps, rescale_t)
    step = Step(0, Interpolant(teacher.interpolant.sigma_min))
    z = euler(teacher, noise, Condition(tokens), Dense(len(tokens)), grid, step)
    with torch.no_grad():
        return torch.cat([decoder(part)[:, 0] > 0 for part in z.split(16)])


def condition_test(
    teacher: Teacher, decoder: SparseStructureDecoder, data: PreparedObjects, *, guidance: float, seed: int = 0
) -> dict[str, float]:
    """Mean IoU to the true held-out object: own picture, another object's picture, and how often the own one wins."""
    batch, teacher.guidance = data.held_out(), Guidance(guidance)
    assert batch.cond.tokens is not None
    truth = data.set.occupancy(data.set.test)[:, 0] > 0
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(seed))
    own = iou(sample(teacher, decoder, batch.cond.tokens, noise, 25), truth)
    other = iou(sample(teacher, decoder, batch.cond.tokens.roll(1, 0), noise, 25), truth)
    return {
        "guidance": guidance,
        "iou_own_picture": float(own.mean()),
        "iou_other_picture": float(other.mean()),
        "own_wins": float((own > other).float().mean()),
        "objects": float(len(truth)),
    }
