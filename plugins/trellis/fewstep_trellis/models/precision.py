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

    half_torso: bool = False

    def torso(self) -> list[nn.Module]:
        """The modules that compute in half precision."""
        raise TypeError(f"{type(self).__name__} does not implement torso")

    def torso_type(self, x: Tensor) -> torch.dtype:
        """What the blocks compute in, given an input of the model."""
        return torch.float16 if self.half_torso else x.dtype

    def convert_to_fp16(self) -> None:
        """Compute the blocks in half precision from now on."""
        self.half_torso = True
        cast_matrices(self.torso(), torch.float16)

    def convert_to_fp32(self) -> None:
        """Undo :meth:`convert_to_fp16`."""
        self.half_torso = False
        cast_matrices(self.torso(), torch.float32)
