"""Conditions of a batch: prepared pictures or captions, encoded on the teacher's device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
import torch
from fewstep_shapes3d.pictures.loading import load_picture
from fewstep_shapes3d.pictures.preprocess import MARGIN, Background
from PIL import Image
from torch import Tensor, nn

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Condition
from fewstep.errors import FewstepError, invalid
from fewstep_trellis.conditioning.factory import image_conditioner, text_conditioner
from fewstep_trellis.conditioning.protocol import ImageConditioner
from fewstep_trellis.official.condition import prepared_picture
from fewstep_trellis.official.config import IMAGE_ENCODER, TEXT_ENCODER, ObjectsConfig, OfficialConfig
from fewstep_trellis.official.items import Item
from fewstep_trellis.official.network import check_width, device_of
from fewstep_trellis.official.tokens import TokenCache, fingerprint, rounded

CHUNK = 8  # pictures at a time
E = TypeVar("E")


class Conditions(Protocol):
    """Reads the condition of an item (in a worker thread), and encodes those of a batch (in the caller's thread)."""

    def load(self, item: Item) -> Item:
        """The item with all that has to be read. Raises ItemError."""

    def encode(self, items: Sequence[Item]) -> Condition:
        """Tokens [B, L, C] of loaded items, with the negative ones."""

    def of(self, picture: Path, background: str) -> tuple[Condition, Image.Image]:
        """The condition of a picture file, tokens [1, L, C], and the picture as it is encoded.

        Raises:
            FewstepError: the file cannot be used.
        """


def conditions(config: OfficialConfig, backbone: Backbone) -> Conditions:
    """The conditions that a config asks for, for this network.

    Raises:
        FewstepError: an encoder that cannot be loaded, or whose tokens do not fit the network.
    """
    if config.condition == "text":
        return TextConditions(config, backbone)
    return ImageConditions(config, backbone, image_conditioner, IMAGE_ENCODER)


class ImageConditions:
    """Pictures, whose tokens may be kept on disk.

    Args:
        make: an encoder by its name.
        default: the name where the config has none.
        margin: side of the cut-out square in units of the object.
    """

    def __init__(
        self,
        config: ObjectsConfig,
        backbone: Backbone,
        make: Callable[[str], ImageConditioner],
        default: str,
        margin: float = MARGIN,
    ) -> None:
        self.backbone, self.size, self.margin = backbone, config.image_size, margin
        self.encoder = _named(make, config.encoder or default)
        check_width("data.encoder", self.encoder.name, self.encoder.channels, backbone)
        self.cache = None
        if config.token_cache is not None:
            weights = fingerprint(self.encoder) if isinstance(self.encoder, nn.Module) else self.encoder.name
            self.cache = TokenCache(config.token_cache, f"{weights}/{self.size}")

    def load(self, item: Item) -> Item:
        assert item.picture is not None
        tokens = self.cache.read(item.picture) if self.cache is not None else None
        if tokens is not None:
            return replace(item, tokens=tokens)
        return replace(item, pixels=prepared_picture(item.picture, self.size, self.margin))

    def encode(self, items: Sequence[Item]) -> Condition:
        device = device_of(self.backbone)
        self.encoder.to(device)
        found = [item.tokens for item in items]
        fresh = [i for i, tokens in enumerate(found) if tokens is None]
        for start in range(0, len(fresh), CHUNK):
            rows = fresh[start : start + CHUNK]
            pixels = torch.stack([p for i in rows if (p := items[i].pixels) is not None])
            for i, tokens in zip(rows, self.encoder(pixels.to(device)), strict=True):
                found[i] = self._kept(items[i], tokens)
        tokens = torch.stack([tokens.to(device) for tokens in found if tokens is not None])
        return Condition(tokens, self.encoder.negative(len(items)))

    def of(self, picture: Path, background: str) -> tuple[Condition, Image.Image]:
        square = self.encoder.prepare(load_picture(picture), str(picture), cast(Background, background))
        sized = square.resize((self.size, self.size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(sized)).permute(2, 0, 1)[None].float() / 255
        device = device_of(self.backbone)
        self.encoder.to(device)
        return Condition(self.encoder(pixels.to(device)), self.encoder.negative(1)), sized

    def _kept(self, item: Item, tokens: Tensor) -> Tensor:
        if self.cache is None or item.picture is None:
            return tokens
        self.cache.write(item.picture, tokens)
        return rounded(tokens)


class TextConditions:
    """Captions."""

    def __init__(self, config: OfficialConfig, backbone: Backbone) -> None:
        self.backbone = backbone
        self.encoder = _named(text_conditioner, config.encoder or TEXT_ENCODER)
        check_width("data.encoder", self.encoder.name, self.encoder.channels, backbone)

    def load(self, item: Item) -> Item:
        return item

    def encode(self, items: Sequence[Item]) -> Condition:
        self.encoder.to(device_of(self.backbone))
        tokens = self.encoder.encode([item.caption or "" for item in items])
        return Condition(tokens, self.encoder.negative(len(items)))

    def of(self, picture: Path, background: str) -> tuple[Condition, Image.Image]:
        raise invalid("--image", str(picture), "nothing: the student was trained on texts")


def _named(make: Callable[[str], E], name: str) -> E:
    try:
        return make(name)
    except FewstepError as error:
        raise FewstepError(f"data.encoder: {error}") from None
