"""The encoder of structured latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep_trellis.models.arguments import check_positive, check_shape
from fewstep_trellis.models.sparse_transformer import SparseTransformer


class SLatEncoder(SparseTransformer):
    """Features of voxels to their latents, with the constructor and the state dict of the official class.

    Args: as of :class:`SparseTransformer`, and
        resolution: edge of the voxel grid, kept for the record.
        latent_channels: Cz.
        use_fp16: the blocks compute in half precision.
    """

    takes = "feats"

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4,
        attn_mode: str = "swin",
        window_size: int | None = 8,
        pe_mode: str = "ape",
        use_fp16: bool = False,
        use_checkpoint: bool = False,
        qk_rms_norm: bool = False,
    ) -> None:
        arguments = locals()
        check_positive(resolution=resolution, latent_channels=latent_channels)
        super().__init__(
            in_channels,
            model_channels,
            num_blocks,
            num_heads,
            num_head_channels,
            mlp_ratio,
            attn_mode,
            window_size,
            pe_mode,
            use_checkpoint,
            qk_rms_norm,
        )
        self.remember(arguments)
        self.resolution, self.latent_channels = resolution, latent_channels
        self.out_layer = nn.Linear(model_channels, 2 * latent_channels)
        self.start(use_fp16=use_fp16)

    def forward(
        self,
        feats: Tensor,
        layout: Packed,
        sample_posterior: bool = False,
        noise: Tensor | None = None,
        return_raw: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Latents ``[T, Cz]``: the posterior's mean, or a draw from it.

        Args:
            feats: ``[T, C]`` features, packed as ``layout``.
            layout: with coords ``[T, 3]``.
            sample_posterior: mean + exp(logvar / 2) * noise in place of the mean.
            noise: ``[T, Cz]``; drawn from torch's generator where it is missing.
            return_raw: also mean and log variance.

        Raises:
            FewstepError: a shape that does not fit.
        """
        if noise is not None:
            check_shape("noise", noise, (layout.rows, self.latent_channels), "[T, Cz]")
        mean, logvar = self.project(feats, layout).chunk(2, -1)
        z = mean
        if sample_posterior:
            z = mean + (0.5 * logvar).exp() * (torch.randn_like(mean) if noise is None else noise)
        return (z, mean, logvar) if return_raw else z
