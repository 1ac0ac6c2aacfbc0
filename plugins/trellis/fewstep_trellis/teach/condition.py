"""Does a teacher follow its picture? Its samples must fit the pictured object better than samples made from another
object's picture do. Only such a teacher is worth distilling."""

from __future__ import annotations

import torch
from fewstep_shapes3d.measures.occupancy import volume_iou
from torch import Tensor

from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import UNGUIDED, Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import Step
from fewstep.core.samplers import euler
from fewstep.core.times import step_grid
from fewstep_trellis.dataset import PreparedObjects
from fewstep_trellis.models import SLatGaussianDecoder, SparseStructureDecoder
from fewstep_trellis.slat_dataset import PreparedLatents
from fewstep_trellis.teach.slat_gs import SH0


def sample_occupancy(
    teacher: Teacher, decoder: SparseStructureDecoder, tokens: Tensor, noise: Tensor, steps: int, rescale_t: float = 1.0
) -> Tensor:
    """Occupancy [B, R, R, R] of samples from these tokens and this noise."""
    grid = step_grid(steps, rescale_t)
    step = Step(0, Interpolant(teacher.interpolant.sigma_min), device=tokens.device)
    z = euler(teacher, noise, Condition(tokens), Dense(len(tokens)), grid, step)
    with torch.no_grad():
        return torch.cat([decoder(part)[:, 0] > 0 for part in z.split(16)])


@torch.no_grad()
def told_by_picture(teacher: Teacher, batch: Batch, noise: Tensor) -> float:
    """R squared of the unguided x0 at t = 1 as a guess of the latents: 1 if it is exact, 0 if it is always their mean.

    At t = 1 the sample is noise, and nothing but the picture tells one object from another.
    """
    t_B = noise.new_ones(len(noise))
    v = teacher(noise, t_B, batch.cond, batch.layout, guidance=UNGUIDED)
    found = teacher.interpolant.x0(noise, v, t_B, batch.layout)
    gap, spread = (found - batch.x0).square().mean(), (batch.x0 - batch.x0.mean(0)).square().mean()
    return float(1 - gap / spread)


def structure_condition_test(
    teacher: Teacher,
    decoder: SparseStructureDecoder,
    data: PreparedObjects,
    *,
    guidance: float,
    device: torch.device,
    seed: int = 0,
) -> dict[str, float]:
    """Mean IoU with the true held-out object, given its own or another's picture, how often its own wins, and R squared
    of the first step (``told_by_picture``)."""
    batch, teacher.guidance = data.held_out().to(device), Guidance(guidance)
    assert batch.cond.tokens is not None
    truth = data.set.occupancy(data.set.test)[:, 0].to(device) > 0
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    own = volume_iou(sample_occupancy(teacher, decoder, batch.cond.tokens, noise, 25), truth)
    other = volume_iou(sample_occupancy(teacher, decoder, batch.cond.tokens.roll(1, 0), noise, 25), truth)
    return {
        "guidance": guidance,
        "iou_own_picture": float(own.mean()),
        "iou_other_picture": float(other.mean()),
        "own_wins": float((own > other).float().mean()),
        "r2_at_noise": told_by_picture(teacher, batch, noise),
        "objects": float(len(truth)),
    }


def sample_latents(teacher: Teacher, batch: Batch, tokens: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Latents [T, C] on the batch's voxels from these tokens and this noise."""
    step = Step(0, Interpolant(teacher.interpolant.sigma_min), device=tokens.device)
    return euler(teacher, noise, Condition(tokens), batch.layout, step_grid(steps), step)


def colours(decoder: SLatGaussianDecoder, data: PreparedLatents, batch: Batch, latents: Tensor) -> Tensor:
    """Mean colour [T, 3] of each voxel's Gaussians."""
    z = latents if data.normalisation is None else data.normalisation.undo(latents)
    assert isinstance(batch.layout, Packed)
    with torch.no_grad():
        found = decoder.decode(z, batch.layout)
    every = torch.cat([each.features_dc.reshape(-1, 3) for each in found])
    return (every.view(len(z), -1, 3) * SH0 + 0.5).mean(1).clamp(0, 1)


@torch.no_grad()
def slat_condition_test(
    teacher: Teacher,
    decoder: SLatGaussianDecoder,
    data: PreparedLatents,
    *,
    guidance: float,
    objects: int,
    steps: int,
    device: torch.device,
) -> dict[str, float]:
    """Errors of colours and latents on the true voxels of held-out objects, given their own or another's picture.

    ``colour_error_*`` is the mean absolute difference (in [0, 1]) of a voxel's colour, ``latent_r2_*`` the share of the
    latents' variation that is reproduced; ``own_wins`` how often an object's own picture gives the better colours.
    """
    batch = data.held_out()
    rows = torch.linspace(0, batch.layout.batch_size - 1, objects).round().long()
    batch, teacher.guidance = batch.select(rows).to(device), Guidance(guidance)
    assert batch.cond.tokens is not None
    chosen = data.set.test[rows.numpy()]
    truth = torch.cat([data.set.surface(int(row))[1][:, -3:] for row in chosen]).to(device) / 2 + 0.5
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(0)).to(device)
    errors, figures = {}, {"guidance": guidance, "objects": float(objects), "steps": float(steps)}
    for name, tokens in (("own", batch.cond.tokens), ("other", batch.cond.tokens.roll(1, 0))):
        found = sample_latents(teacher, batch, tokens, noise, steps)
        off = (colours(decoder, data, batch, found) - truth).abs().mean(1)
        errors[name] = batch.layout.mean(off[:, None])
        figures[f"colour_error_{name}_picture"] = float(errors[name].mean())
        gap, spread = (found - batch.x0).square().mean(), (batch.x0 - batch.x0.mean(0)).square().mean()
        figures[f"latent_r2_{name}_picture"] = float(1 - gap / spread)
    floor = (colours(decoder, data, batch, batch.x0) - truth).abs().mean(1)
    figures["colour_error_of_true_latents"] = float(batch.layout.mean(floor[:, None]).mean())
    return figures | {"own_wins": float((errors["own"] < errors["other"]).float().mean())}
