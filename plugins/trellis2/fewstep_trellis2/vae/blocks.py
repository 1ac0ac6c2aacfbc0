"""Blocks of the autoencoders. All features are rows of voxels [T, C]."""

from __future__ import annotations

import torch.nn.functional as F
from fewstep_shapes3d.sparse import submanifold_conv
from fewstep_trellis.models.arguments import check_divides
from fewstep_trellis.models.initialise import zero
from fewstep_trellis.models.linear import Linear
from fewstep_trellis.models.norms import WideLayerNorm
from fewstep_trellis.models.sparse_layers import ConvolutionParameters
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep_trellis2.vae.subdivision import Subdivision, gathered

EPS = 1e-6


class SubmanifoldConv3d(ConvolutionParameters):
    """Submanifold convolution of 3^3, [T, Ci] to [T, Co]; ``weight`` is [Co, 3, 3, 3, Ci], first kernel axis along x.

    Its parameters are its own, whereas TRELLIS's are one level deeper, in ``conv``.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3)

    def forward(self, x: Tensor, layout: Packed) -> Tensor:
        return submanifold_conv(x, self.weight, self.bias, layout)


class SparseConvNeXtBlock3d(nn.Module):
    """Convolution, norm and MLP with one hidden layer, plus the input.

    Args:
        channels: C.
        mlp_ratio: hidden width in units of C.
        use_checkpoint: recompute the activations in the backward pass.
    """

    def __init__(self, channels: int, mlp_ratio: float = 4.0, use_checkpoint: bool = False) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        hidden = int(channels * mlp_ratio)
        self.norm = WideLayerNorm(channels, eps=EPS)
        self.conv = SubmanifoldConv3d(channels, channels)
        self.mlp = nn.Sequential(Linear(channels, hidden), nn.SiLU(), Linear(hidden, channels))
        zero(self.mlp[2])

    def forward(self, x: Tensor, layout: Packed) -> Tensor:
        out: Tensor = self.mlp(self.norm(self.conv(x, layout))) + x
        return out


class _Resampling(nn.Module):
    """What both directions share: norm, convolution, a change of the grid, norm, convolution."""

    def __init__(self, channels: int, out_channels: int, inner: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.norm1 = WideLayerNorm(channels, eps=EPS)
        self.norm2 = WideLayerNorm(out_channels, eps=EPS, elementwise_affine=False)
        self.conv1 = SubmanifoldConv3d(channels, inner)
        self.conv2 = SubmanifoldConv3d(out_channels, out_channels)
        zero(self.conv2)

    def before(self, x: Tensor, layout: Packed) -> Tensor:
        """The first half, on the grid of the input."""
        return self.conv1(F.silu(self.norm1(x)), layout)  # type: ignore[no-any-return]

    def after(self, h: Tensor, layout: Packed) -> Tensor:
        """The second half, on the grid of the output."""
        return self.conv2(F.silu(self.norm2(h)), layout)  # type: ignore[no-any-return]


class SparseResBlockC2S3d(_Resampling):
    """From a grid to its children: channels to space.

    Args:
        channels: of the input, a multiple of 8.
        out_channels: of the output, a multiple of ``channels / 8``.
        use_checkpoint: accepted as upstream's; has no effect here.
        pred_subdiv: predict which children exist, otherwise they are given.

    Raises:
        FewstepError: channels that do not fit.
    """

    def __init__(
        self, channels: int, out_channels: int, use_checkpoint: bool = False, pred_subdiv: bool = True
    ) -> None:
        check_divides("model_channels", channels, 8, "8, the children of a voxel")
        check_divides("model_channels", out_channels, channels // 8, "an eighth of the channels before")
        super().__init__(channels, out_channels, 8 * out_channels)
        if pred_subdiv:
            self.to_subdiv = Linear(channels, 8)

    def forward(self, x: Tensor, layout: Packed, children: Subdivision) -> Tensor:
        h = self.after(children.spread(self.before(x, layout)), children.layout)
        skip = children.spread(x)
        return h + skip.repeat_interleave(self.out_channels // skip.shape[1], 1)


class SparseResBlockS2C3d(_Resampling):
    """From a grid to that of half the resolution: space to channels.

    Args:
        channels: of the input.
        out_channels: of the output, a multiple of 8 and a divisor of ``8 * channels``.
        use_checkpoint: accepted as upstream's; has no effect here.

    Raises:
        FewstepError: channels that do not fit.
    """

    def __init__(self, channels: int, out_channels: int, use_checkpoint: bool = False) -> None:
        check_divides("model_channels", out_channels, 8, "8, the children of a voxel")
        check_divides("8 x model_channels", 8 * channels, out_channels, "the channels after")
        super().__init__(channels, out_channels, out_channels // 8)

    def forward(self, x: Tensor, layout: Packed) -> tuple[Tensor, Packed]:
        inner, coarse = gathered(self.before(x, layout), layout)
        skip = gathered(x, layout)[0].unflatten(1, (self.out_channels, -1)).mean(-1)
        return self.after(inner, coarse) + skip, coarse
