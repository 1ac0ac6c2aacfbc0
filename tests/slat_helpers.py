"""A tiny structured-latent flow with random weights everywhere, and ragged batches for it."""

from __future__ import annotations

import torch
from fewstep_trellis.models import SLatFlowModel
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.slat import StructuredLatentFlow
from torch import Tensor, nn

from fewstep.core.batch import Batch, Condition
from fewstep.core.layout import Packed

CHANNELS, TOKENS, WIDTH, RESOLUTION = 3, 5, 6, 8
LENGTHS = (9, 0, 20, 1)


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Weights of a size at which every layer counts, also those that start at zero."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draws) + (parameter.dim() == 1))
    return model


def slat_flow(seed: int = 0, normalisation: Normalisation | None = None) -> StructuredLatentFlow:
    """One halving, one transformer block, one residual block on each side of it."""
    sizes = {"resolution": RESOLUTION, "in_channels": CHANNELS, "out_channels": CHANNELS, "model_channels": 16}
    model = SLatFlowModel(
        **sizes, cond_channels=WIDTH, num_blocks=1, num_heads=2, mlp_ratio=2, num_io_res_blocks=1,
        io_block_channels=[8], qk_rms_norm=True,
    )  # fmt: skip
    return StructuredLatentFlow(randomised(model, seed), normalisation)


def voxels(count: int, seed: int) -> Tensor:
    """[count, 3] distinct occupied voxels in random order, near each other."""
    draws = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(4**3, generator=draws)[:count]
    return torch.stack([chosen // 16, chosen // 4 % 4, chosen % 4], 1).int()


def slat_batch(lengths: tuple[int, ...] = LENGTHS, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """Samples with so many voxels, under tokens of their own."""
    draws = torch.Generator().manual_seed(seed)
    coords = torch.cat([voxels(count, seed + i) for i, count in enumerate(lengths)])
    x0 = torch.randn(sum(lengths), CHANNELS, generator=draws, dtype=dtype)
    tokens = torch.randn(len(lengths), TOKENS, WIDTH, generator=draws, dtype=dtype)
    return Batch(x0, Packed.of_lengths(list(lengths), coords), Condition(tokens))
