"""DINOv2's original checkpoints: their architecture, read from the tensors, and their keys in transformers' names.

Source of the key map: dino/facts.json of the golden data ("key map to transformers Dinov2WithRegistersModel").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError, invalid
from fewstep_trellis.weightfiles import State, read_tensors
from fewstep_trellis.weights import misfits, select

ANCHORS = ("cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight")  # every DINOv2 file has them
HEAD_WIDTH = 64  # of every released size; the number of heads cannot be read from the tensors
_TOP = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}


@dataclass(frozen=True)
class Architecture:
    """The network of a checkpoint: ``grid`` patches on a side, ``hidden`` the width inside the feed-forward part."""

    width: int
    depth: int
    heads: int
    patch: int
    registers: int
    grid: int
    hidden: int
    swiglu: bool

    @property
    def mlp_ratio(self) -> int:
        """As transformers counts it. Raises FewstepError if no whole ratio gives the hidden width."""
        for ratio in range(1, 17):
            plain = self.width * ratio
            if self.hidden == ((int(plain * 2 / 3) + 7) // 8 * 8 if self.swiglu else plain):
                return ratio
        raise FewstepError(f"DINOv2 checkpoint: a hidden width of {self.hidden} is not a multiple of {self.width}")

    def config(self) -> dict[str, Any]:
        """The arguments of transformers' ``Dinov2WithRegistersConfig``."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            "mlp_ratio": self.mlp_ratio,
            "image_size": self.grid * self.patch,
            "patch_size": self.patch,
            "num_register_tokens": self.registers,
            "use_swiglu_ffn": self.swiglu,
        }

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every original key of such a network with its shape."""
        c, h = self.width, self.hidden
        yield from {"cls_token": (1, 1, c), "pos_embed": (1, 1 + self.grid**2, c), "mask_token": (1, c)}.items()
        if self.registers:
            yield "register_tokens", (1, self.registers, c)
        yield from _weight_and_bias("patch_embed.proj", (c, 3, self.patch, self.patch))
        yield from _weight_and_bias("norm", (c,))
        mlp = {"w12": (2 * h, c), "w3": (c, h)} if self.swiglu else {"fc1": (h, c), "fc2": (c, h)}
        for block in (f"blocks.{i}." for i in range(self.depth)):
            parts = {"norm1": (c,), "norm2": (c,), "attn.qkv": (3 * c, c), "attn.proj": (c, c)}
            for name, shape in {**parts, **{f"mlp.{name}": shape for name, shape in mlp.items()}}.items():
                yield from _weight_and_bias(block + name, shape)
            yield from {block + "ls1.gamma": (c,), block + "ls2.gamma": (c,)}.items()


def read_original(path: Path, heads: int | None = None) -> tuple[Architecture, State]:
    """The network of a file in DINOv2's own layout, and its tensors under transformers' keys.

    Args:
        path: ``.pth`` (read without pickle) or ``.safetensors``.
        heads: number of attention heads; None counts them by the released models' 64 channels a head.

    Raises:
        FewstepError: the file cannot be read, is not a DINOv2 checkpoint, or has missing, extra or wrongly shaped keys.
    """
    state = select(read_tensors(path), ANCHORS, str(path))
    return convert(state, str(path), heads)


def convert(state: State, source: str, heads: int | None = None) -> tuple[Architecture, State]:
    """``read_original`` for tensors in memory; ``source`` says in messages where they come from."""
    found = infer(state, source, heads)
    own = {key: torch.empty(shape, device="meta") for key, shape in found.shapes()}
    if wrong := misfits(own, state):
        raise FewstepError(f"{source} does not fit a DINOv2 of {found}: {'; '.join(wrong)}")
    renamed = dict(pair for key, value in state.items() for pair in _renamed(key, value))
    renamed.setdefault("embeddings.register_tokens", torch.zeros(1, 0, found.width))
    return found, renamed


def infer(state: State, source: str, heads: int | None = None) -> Architecture:
    """The architecture of these tensors. Raises FewstepError if they are not a DINOv2's."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    blocks = {match[1] for key in state if (match := re.match(r"blocks\.(\d+)\.", key))}
    swiglu = "blocks.0.mlp.w3.weight" in shapes
    try:
        width, _, patch, _ = shapes["patch_embed.proj.weight"]
        _, positions, _ = shapes["pos_embed"]
        hidden = shapes["blocks.0.mlp.w3.weight"][1] if swiglu else shapes["blocks.0.mlp.fc1.weight"][0]
        registers = shapes["register_tokens"][1] if "register_tokens" in shapes else 0
    except (KeyError, ValueError, IndexError) as error:
        raise invalid(
            "DINOv2 checkpoint", source, f"the original keys; {error} is missing or of another rank"
        ) from error
    grid = round((positions - 1) ** 0.5)
    heads = heads or width // HEAD_WIDTH
    if grid * grid != positions - 1 or not heads or width % heads:
        got = f"{positions} positions, width {width}, {heads} heads"
        raise invalid(source, got, "1 + a square number of positions, a width that the heads divide")
    return Architecture(width, len(blocks), heads, patch, registers, grid, hidden, swiglu)


def _weight_and_bias(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _renamed(key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor under its new key; ``qkv`` as three tensors."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+?)(\.weight|\.bias)?", key)
    if block is None:
        stem, suffix = re.fullmatch(r"(.+?)(\.weight|\.bias)?", key).groups("")  # type: ignore[union-attr]
        yield _TOP[stem] + suffix, value
        return
    number, name, suffix = block.groups("")
    layer = f"encoder.layer.{number}."
    if name != "attn.qkv":
        yield layer + _BLOCK[name] + suffix, value
        return
    for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
        yield f"{layer}attention.attention.{part}{suffix}", third
