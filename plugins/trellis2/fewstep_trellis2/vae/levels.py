"""What encoders and decoders share: levels of blocks, each on a grid of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewstep_trellis.models.arguments import check_positive
from fewstep_trellis.models.precision import HalfTorso
from fewstep_trellis.models.recompute import run_block
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError, unknown
from fewstep_trellis2.vae.blocks import SparseConvNeXtBlock3d

Arguments = Sequence[Mapping[str, Any]]


class Levels(HalfTorso):
    """``blocks[level]``: residual blocks, then, except at the last level, one that changes the grid."""

    blocks: nn.ModuleList

    def make_levels(
        self,
        change: type[nn.Module],
        changes: tuple[str, Sequence[str]],
        model_channels: Sequence[int],
        num_blocks: Sequence[int],
        block_type: Sequence[str],
        block_args: Arguments,
        **more: Any,
    ) -> None:
        """Make the blocks.

        Args:
            change: class of the blocks that change the grid.
            changes: name and value of the argument that lists their classes, one fewer than there are levels.
            model_channels, num_blocks, block_type, block_args: of each level.
            more: arguments of ``change`` beside those of its level.

        Raises:
            FewstepError: lists of different lengths, or a type of block that no published model has.
        """
        count = len(num_blocks)
        lists = {"model_channels": model_channels, "block_type": block_type, "block_args": block_args}
        for name, values in lists.items():
            if len(values) != count:
                raise FewstepError(f"{name}: got {len(values)} levels; accepted: {count}, as num_blocks has")
        name, named = changes
        if len(named) != count - 1:
            raise FewstepError(f"{name}: got {len(named)}; accepted: {count - 1}, one fewer than levels")
        for key, values, known in (("block_type", block_type, SparseConvNeXtBlock3d), (name, named, change)):
            for value in values:
                if value != known.__name__:
                    raise unknown(key, value, [known.__name__])
        self.num_blocks = list(num_blocks)
        self.blocks = nn.ModuleList()
        for level, channels in enumerate(model_channels):
            check_positive(model_channels=channels)
            level_blocks: list[nn.Module] = [
                SparseConvNeXtBlock3d(channels, **block_args[level]) for _ in range(num_blocks[level])
            ]
            if level + 1 < count:
                level_blocks.append(change(channels, model_channels[level + 1], **block_args[level], **more))
            self.blocks.append(nn.ModuleList(level_blocks))

    def torso(self) -> list[nn.Module]:
        return list(self.blocks)

    def run_level(self, level: int, h: Tensor, layout: Packed) -> Tensor:
        """The residual blocks of a level, [T, C] to [T, C]."""
        for block in self.blocks[level][: self.num_blocks[level]]:  # type: ignore[index]
            h = run_block(block, h, layout, recompute=block.use_checkpoint)
        return h
