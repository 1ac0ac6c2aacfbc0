"""The flow transformer of the first stage: a coarse dense grid of structure latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.batch import Condition
from fewstep.errors import FewstepError, unknown
from fewstep_trellis.models.arguments import check_divides, check_positive, check_shape
from fewstep_trellis.models.attention import number_of_heads
from fewstep_trellis.models.blocks import ModulatedCrossBlock, modulation, modulation_for_blocks, tokens_for_blocks
from fewstep_trellis.models.embeddings import TimestepEmbedder, grid_coords, position_embedding
from fewstep_trellis.models.initialise import initialise
from fewstep_trellis.models.patches import patchify, unpatchify
from fewstep_trellis.models.recompute import run_block
from fewstep_trellis.models.student_parts import ADDED, StudentParts


def check_pe_mode(pe_mode: str) -> None:
    """Raise FewstepError for anything but ``"ape"``."""
    if pe_mode == "rope":
        raise FewstepError(
            "pe_mode: got 'rope'; accepted: 'ape'. The published rotary mode runs in none of its models "
            "and no published checkpoint uses it"
        )
    if pe_mode != "ape":
        raise unknown("pe_mode", pe_mode, ["ape"])


class SparseStructureFlowModel(StudentParts):
    """Velocity of structure latents, with the constructor and the state dict of the official class.

    Args:
        resolution: R, edge of the cubic grid; a multiple of ``patch_size``.
        in_channels: C of the input.
        model_channels: width of the transformer; a multiple of the number of heads.
        cond_channels: Cc, width of the condition tokens.
        out_channels: C of the output.
        num_blocks: number of blocks.
        num_heads: attention heads; by default ``model_channels // num_head_channels``.
        num_head_channels: width of a head, used without ``num_heads``.
        mlp_ratio: width of the feed-forward networks in units of ``model_channels``.
        patch_size: edge of the cube of cells that makes a token.
        pe_mode: ``"ape"``, sines and cosines of the position.
        use_fp16: the blocks compute in half precision; embedders, norms and output stay in float32.
        use_checkpoint: recompute the blocks in the backward pass; without effect under ``torch.func`` transforms,
            which activation checkpointing does not support.
        share_mod: one modulation layer for all blocks.
        qk_rms_norm: norm of queries and keys in self attention.
        qk_rms_norm_cross: the same in cross attention.
        two_time, guidance_input: a second time and the guidance strength, for students of methods that need them; not
            among the official arguments.
        points: velocities per pass, more than one for a policy (``fewstep.core.policy``); likewise.

    Raises:
        FewstepError: arguments that do not fit together, or ``pe_mode="rope"``.
    """

    pos_emb: Tensor

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        cond_channels: int,
        out_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4,
        patch_size: int = 2,
        pe_mode: str = "ape",
        use_fp16: bool = False,
        use_checkpoint: bool = False,
        share_mod: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        two_time: bool = False,
        guidance_input: bool = False,
        points: int = 1,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ADDED}
        super().__init__()
        self.remember(arguments)
        check_positive(resolution=resolution, patch_size=patch_size, num_heads=num_heads, num_blocks=num_blocks)
        check_pe_mode(pe_mode)
        check_divides("resolution", resolution, patch_size, "patch_size")
        self.resolution, self.patch_size, self.grid = resolution, patch_size, resolution // patch_size
        self.in_channels, self.out_channels, self.cond_channels = in_channels, out_channels, cond_channels
        self.use_checkpoint: bool | str = use_checkpoint
        heads = number_of_heads(model_channels, num_heads, num_head_channels)

        self.t_embedder = TimestepEmbedder(model_channels)
        self.adaLN_modulation = modulation(model_channels) if share_mod else None
        positions = position_embedding(grid_coords(self.grid), model_channels)
        self.register_buffer("pos_emb", positions.to(torch.get_default_device()))
        self.input_layer = nn.Linear(in_channels * patch_size**3, model_channels)
        self.blocks = nn.ModuleList(
            ModulatedCrossBlock(
                model_channels, cond_channels, heads, mlp_ratio, qk_rms_norm, qk_rms_norm_cross, share_mod
            )
            for _ in range(num_blocks)
        )
        self.out_layer = nn.Linear(model_channels, out_channels * patch_size**3)
        initialise(self, self.out_layer, self.adaLN_modulation)
        if two_time:
            self.take_second_time(model_channels)
        if guidance_input:
            self.take_strength(model_channels)
        if points > 1:
            self.become_policy(points)
        if use_fp16:
            self.convert_to_fp16()

    def torso(self) -> list[nn.Module]:
        return [self.blocks]

    def _check(self, x: Tensor, t: Tensor, tokens: Tensor | None) -> None:
        size, batch = self.resolution, x.shape[0]
        check_shape("x", x, (None, self.in_channels, size, size, size), "[B, C, R, R, R]")
        check_shape("t", t, (batch,), "[B]")
        check_shape("cond", tokens, (batch, None, self.cond_channels), "[B, L, Cc]")

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | Condition, *, s: Tensor | None = None) -> Tensor:
        """The velocity at ``x``.

        Args:
            x: ``[B, C, R, R, R]`` noisy latents.
            t: ``[B]`` times, 0 (data) to 1000 (noise).
            cond: ``[B, L, Cc]`` condition tokens, or a ``Condition``; a blank one (all 0) costs no attention.
            s: ``[B]`` end times of the jumps, 0 to t, for a model with ``two_time``.

        Returns:
            ``[B, out_channels, R, R, R]`` in the type of ``x``; of a policy ``[points, B, out_channels, R, R, R]``.

        Raises:
            FewstepError: a shape that does not fit.
        """
        self._check(x, t, cond.tokens if isinstance(cond, Condition) else cond)
        h = self.input_layer(patchify(x, self.patch_size)) + self.pos_emb
        torso = self.torso_type(h)
        h, mod = h.to(torso), modulation_for_blocks(self.embedded(t, s, cond), self.adaLN_modulation, torso)
        tokens = tokens_for_blocks(cond, torso)
        for block in self.blocks:
            h = run_block(block, h, mod, tokens, recompute=self.use_checkpoint)
        # This last norm has torch's default eps 1e-5, unlike those of the blocks.
        out: Tensor = self.out_layer(F.layer_norm(h.to(x.dtype), h.shape[-1:]))
        return unpatchify(self.velocities(out), self.patch_size, self.grid)
