"""The autoencoder between occupancy grids and structure latents."""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import Tensor, nn

from fewstep.errors import invalid
from fewstep_trellis.models.arguments import check_positive, check_shape
from fewstep_trellis.models.convolutions import Conv3d, Downsample3d, Upsample3d, norm_layer, res_blocks
from fewstep_trellis.models.precision import HalfTorso


def _stages(channels: list[int], count: int, resample: type[Downsample3d] | type[Upsample3d]) -> nn.ModuleList:
    """Residual blocks of each width, with a resampling between two widths."""
    if not channels:
        raise invalid("channels", channels, "a list of at least one width")
    layers: list[nn.Module] = []
    for width, following in zip_longest(channels, channels[1:]):
        layers += res_blocks(count, width)
        if following is not None:
            layers.append(resample(width, following))
    return nn.ModuleList(layers)


def _output(norm_type: str, channels: int, out_channels: int) -> nn.Sequential:
    conv = Conv3d(channels, out_channels, 3, padding=1)
    return nn.Sequential(norm_layer(norm_type, channels), nn.SiLU(), conv)


class _ResidualBlocks(HalfTorso):
    """Half precision for ``blocks`` and ``middle_block`` only."""

    blocks: nn.ModuleList
    middle_block: nn.Sequential

    def torso(self) -> list[nn.Module]:
        return [self.blocks, self.middle_block]


class SparseStructureEncoder(_ResidualBlocks):
    """Occupancy to structure latents, with the constructor and the state dict of the official class.

    Args:
        in_channels: channels of the grid.
        latent_channels: channels of the latents.
        num_res_blocks: residual blocks per stage.
        channels: width of each stage; the resolution halves from one to the next.
        num_res_blocks_middle: residual blocks at the lowest resolution.
        norm_type: ``"layer"`` or ``"group"``, of the output layer.
        use_fp16: the blocks compute in half precision.

    Raises:
        FewstepError: arguments that do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: list[int],
        num_res_blocks_middle: int = 2,
        norm_type: str = "layer",
        use_fp16: bool = False,
    ) -> None:
        arguments = locals()
        super().__init__()
        self.remember(arguments)
        check_positive(in_channels=in_channels, latent_channels=latent_channels)
        self.in_channels = in_channels
        stages = _stages(channels, num_res_blocks, Downsample3d)
        self.input_layer = Conv3d(in_channels, channels[0], 3, padding=1)
        self.blocks = stages
        self.middle_block = nn.Sequential(*res_blocks(num_res_blocks_middle, channels[-1]))
        self.out_layer = _output(norm_type, channels[-1], 2 * latent_channels)
        if use_fp16:
            self.convert_to_fp16()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each ``[B, latent_channels, r, r, r]``, of occupancy ``[B, C, R, R, R]``."""
        check_shape("x", x, (None, self.in_channels, None, None, None), "[B, C, R, R, R]")
        h = self.input_layer(x)
        h = h.to(self.torso_type(h))
        for block in self.blocks:
            h = block(h)
        mean, logvar = self.out_layer(self.middle_block(h).to(x.dtype)).chunk(2, 1)
        return mean, logvar

    def forward(
        self,
        x: Tensor,
        sample_posterior: bool = False,
        return_raw: bool = False,
        noise: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Latents of an occupancy grid.

        Args:
            x: ``[B, C, R, R, R]``, 1 where occupied.
            sample_posterior: draw from the posterior; otherwise its mean is returned.
            return_raw: also return mean and log variance.
            noise: the standard normal draw for ``sample_posterior``, shaped as the latents; by default a new one.

        Returns:
            ``z`` ``[B, latent_channels, r, r, r]``, or ``(z, mean, logvar)``.
        """
        mean, logvar = self.encode(x)
        z = mean
        if sample_posterior:
            z = mean + (0.5 * logvar).exp() * (torch.randn_like(mean) if noise is None else noise)
        return (z, mean, logvar) if return_raw else z


class SparseStructureDecoder(_ResidualBlocks):
    """Structure latents to occupancy logits, with the constructor and the state dict of the official class.

    Args:
        out_channels: channels of the grid.
        latent_channels: channels of the latents.
        num_res_blocks: residual blocks per stage.
        channels: width of each stage; the resolution doubles from one to the next.
        num_res_blocks_middle: residual blocks at the lowest resolution.
        norm_type: ``"layer"`` or ``"group"``, of the output layer.
        use_fp16: the blocks compute in half precision.

    Raises:
        FewstepError: arguments that do not fit.
    """

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: list[int],
        num_res_blocks_middle: int = 2,
        norm_type: str = "layer",
        use_fp16: bool = False,
    ) -> None:
        arguments = locals()
        super().__init__()
        self.remember(arguments)
        check_positive(out_channels=out_channels, latent_channels=latent_channels)
        self.latent_channels = latent_channels
        stages = _stages(channels, num_res_blocks, Upsample3d)
        self.input_layer = Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(*res_blocks(num_res_blocks_middle, channels[0]))
        self.blocks = stages
        self.out_layer = _output(norm_type, channels[-1], out_channels)
        if use_fp16:
            self.convert_to_fp16()

    def forward(self, z: Tensor) -> Tensor:
        """Logits ``[B, out_channels, R, R, R]`` of latents ``[B, latent_channels, r, r, r]``; above 0 is occupied."""
        check_shape("z", z, (None, self.latent_channels, None, None, None), "[B, C, r, r, r]")
        h = self.input_layer(z)
        h = self.middle_block(h.to(self.torso_type(h)))
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.out_layer(h.to(z.dtype))
        return out


def occupied_coords(logits: Tensor) -> Tensor:
    """Coordinates of the occupied cells.

    Args:
        logits: ``[B, 1, R, R, R]`` from the decoder.

    Returns:
        ``[N, 4]`` int32 rows (batch, x, y, z) where the logit is above 0, in C order.
    """
    return torch.argwhere(logits[:, 0] > 0).int()
