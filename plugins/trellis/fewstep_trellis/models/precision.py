"""Mixed precision as the official checkpoints use it: half linear and convolution weights, float32 all else."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fewstep_trellis.models.arguments import Rebuildable
from fewstep_trellis.models.sparse_layers import ConvolutionParameters

_MATRIX_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, ConvolutionParameters)


def cast_matrices(modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Cast the weights and biases of all linear and convolution layers; norms and gammas keep their type."""
    for root in modules:
        for layer in root.modules():
            if isinstance(layer, _MATRIX_LAYERS):
                layer.to(dtype)


class HalfTorso(Rebuildable):
    """A model whose blocks can compute in half precision; embedders, norms and output stay as they are."""

    half_torso: torch.dtype | None = None  # what the blocks compute in; None: in the type of the input

    def torso(self) -> list[nn.Module]:
        """The modules that compute in half precision."""
        raise TypeError(f"{type(self).__name__} does not implement torso")

    def torso_type(self, x: Tensor) -> torch.dtype:
        """What the blocks compute in, given an input of the model."""
        return self.half_torso or x.dtype

    def convert_torso(self, dtype: torch.dtype) -> None:
        """Compute the blocks in this half precision from now on."""
        self.half_torso = dtype
        cast_matrices(self.torso(), dtype)

    def convert_to_fp16(self) -> None:
        """Compute the blocks in float16 from now on."""
        self.convert_torso(torch.float16)

    def convert_to_fp32(self) -> None:
        """Undo :meth:`convert_torso`."""
        self.half_torso = None
        cast_matrices(self.torso(), torch.float32)
