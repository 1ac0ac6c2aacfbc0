"""Mixed precision as the official checkpoints use it: half linear and convolution weights, float32 all else."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from fewstep_trellis.models.sparse_layers import SparseConv3d

_MATRIX_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, SparseConv3d)


def cast_matrices(modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Cast the weights and biases of all linear and convolution layers; norms and gammas keep their type."""
    for root in modules:
        for layer in root.modules():
            if isinstance(layer, _MATRIX_LAYERS):
                layer.to(dtype)
