"""What the flow transformers of all stages share: linear layer, modulated blocks, layer norm, linear layer."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from fewstep_trellis.models.arguments import check_positive
from fewstep_trellis.models.attention import number_of_heads
from fewstep_trellis.models.blocks import (
    ModulatedCrossBlock,
    Tokens,
    modulation,
    modulation_for_blocks,
    tokens_for_blocks,
)
from fewstep_trellis.models.embeddings import TimestepEmbedder
from fewstep_trellis.models.initialise import initialise
from fewstep_trellis.models.recompute import run_block
from fewstep_trellis.models.student_parts import ADDED, StudentParts
from torch import Tensor, nn

from fewstep.core.batch import Condition
from fewstep.core.layout import Packed
from fewstep.errors import unknown
from fewstep.ops.norms import Rotary
from fewstep_trellis2.models.rotary import FREQUENCIES

TORSOS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
PE_MODES = ("ape", "rope")
INITIALIZATIONS = ("vanilla", "scaled")


class FlowTransformer(StudentParts):
    """The constructor and the state dict of TRELLIS.2's flow classes; a subclass sets ``block`` and ``forward``.

    Args:
        resolution: R, edge of the grid.
        in_channels: C of the input, with what is concatenated to the latents.
        model_channels: width of the transformer; a multiple of the number of heads.
        cond_channels: Cc, width of the condition tokens.
        out_channels: C of the output.
        num_blocks: number of blocks.
        num_heads: attention heads; by default ``model_channels // num_head_channels``.
        num_head_channels: width of a head, used without ``num_heads``.
        mlp_ratio: hidden width of the feed-forward networks in units of ``model_channels``, truncated.
        pe_mode: ``"rope"``: rotary embedding in self attention; ``"ape"``: sines and cosines are added.
        rope_freq: first frequency and ratio of the rotary embedding.
        dtype: what the linear layers of the blocks compute in: float32, bfloat16 or float16. All else is float32.
        use_checkpoint: recompute the blocks in the backward pass; without effect under ``torch.func`` transforms.
        share_mod: one modulation layer for all blocks, plus an offset learned by each block.
        initialization: kept for the record. Weights come from a file; new ones start as TRELLIS's do.
        qk_rms_norm: norm of queries and keys in self attention.
        qk_rms_norm_cross: the same in cross attention.
        two_time: a second time, for students of methods that need one; not among the official arguments.
        guidance_input: the guidance strength as an input, likewise.
        points: velocities per pass, more than one for a policy (``fewstep.core.policy``), likewise.

    Raises:
        FewstepError: arguments that do not fit together, or an unknown one.
    """

    block: ClassVar[type[ModulatedCrossBlock]]

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
        pe_mode: str = "ape",
        rope_freq: tuple[float, float] = FREQUENCIES,
        dtype: str = "float32",
        use_checkpoint: bool = False,
        share_mod: bool = False,
        initialization: str = "vanilla",
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        two_time: bool = False,
        guidance_input: bool = False,
        points: int = 1,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ADDED}
        super().__init__()
        self.remember(arguments)
        check_positive(resolution=resolution, num_heads=num_heads, num_blocks=num_blocks)
        for key, value, accepted in (
            ("pe_mode", pe_mode, PE_MODES),
            ("dtype", dtype, tuple(TORSOS)),
            ("initialization", initialization, INITIALIZATIONS),
        ):
            if value not in accepted:
                raise unknown(key, value, accepted)
        self.resolution, self.model_channels = resolution, model_channels
        self.in_channels, self.out_channels, self.cond_channels = in_channels, out_channels, cond_channels
        self.rotary = pe_mode == "rope"
        self.use_checkpoint: bool | str = use_checkpoint
        self.frequencies = (float(rope_freq[0]), float(rope_freq[1]))
        heads = number_of_heads(model_channels, num_heads, num_head_channels)
        self.head_width = model_channels // heads

        self.t_embedder = TimestepEmbedder(model_channels)
        self.adaLN_modulation = modulation(model_channels) if share_mod else None
        self.input_layer = nn.Linear(in_channels, model_channels)
        self.blocks = nn.ModuleList(
            self.block(model_channels, cond_channels, heads, mlp_ratio, qk_rms_norm, qk_rms_norm_cross, share_mod)
            for _ in range(num_blocks)
        )
        self.out_layer = nn.Linear(model_channels, out_channels)
        self.keep_positions()
        initialise(self, self.out_layer, self.adaLN_modulation)
        if two_time:
            self.take_second_time(model_channels)
        if guidance_input:
            self.take_strength(model_channels)
        if points > 1:
            self.become_policy(points)
        if torso := TORSOS[dtype]:
            self.convert_torso(torso)

    def keep_positions(self) -> None:
        """Make the buffers that a subclass has; none here."""

    def torso(self) -> list[nn.Module]:
        return [self.blocks]

    def through_blocks(
        self,
        h: Tensor,
        t: Tensor,
        s: Tensor | None,
        cond: Tokens | Condition,
        rotary: Rotary | None,
        layout: Packed | None = None,
    ) -> Tensor:
        """From the input layer's tokens, ``[B, L, C]`` or ``[T, C]``, to the output layer's, in the type of ``h``;
        of a policy with a leading axis of its velocities."""
        kept, torso = h.dtype, self.torso_type(h)
        mod = modulation_for_blocks(self.embedded(t, s, cond), self.adaLN_modulation, torso)
        h, tokens = h.to(torso), tokens_for_blocks(cond, torso)
        for block in self.blocks:
            h = run_block(block, h, mod, tokens, layout, rotary, recompute=self.use_checkpoint)
        # This last norm has torch's default eps 1e-5, unlike those of the blocks.
        out: Tensor = self.out_layer(F.layer_norm(h.to(kept), h.shape[-1:]))
        return self.velocities(out)
