"""What a visitor sends, as an order; what cannot be used is refused, with what is accepted."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import Image

from fewstep.errors import FewstepError, invalid
from fewstep_shapes3d.app.maker import Maker, Order
from fewstep_shapes3d.pictures.loading import load_picture

MOST_STEPS, LAST_SEED = 1000, 2**31 - 1


def order_of(body: bytes, maker: Maker) -> Order:
    """What the JSON of an order asks for: ``picture`` (base64) or ``example`` (a number), ``name``, ``choice``,
    ``steps``, ``seed``, ``keep``.

    Raises:
        FewstepError: something that cannot be used; says what is accepted.
    """
    try:
        asked = json.loads(body)
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise invalid("order", body[:60].decode(errors="replace"), "a JSON object")
    labels = [choice.label for choice in maker.choices]
    choice = _whole("method", asked.get("choice"), 0, len(labels) - 1)
    given = asked.get("steps")
    given = given if isinstance(given, list) else [given]
    if len(given) != len(maker.stages):
        raise invalid("steps", given, f"a number for each of {', '.join(maker.stages)}")
    steps = [_whole(f"steps of {s}", n, 1, MOST_STEPS) for s, n in zip(maker.stages, given, strict=True)]
    seed = _whole("seed", asked.get("seed"), 0, LAST_SEED)
    picture, name = _picture(asked, maker)
    return Order(picture, name, choice, tuple(steps), seed, "keep" if asked.get("keep") else "remove")


def _whole(key: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise invalid(key, "" if value is None else value, f"an integer from {least} to {most}")
    return value


def _picture(asked: Mapping[str, Any], maker: Maker) -> tuple[Image.Image, str]:
    names = list(maker.examples)
    if asked.get("example") is not None:
        name = names[_whole("example", asked["example"], 0, len(names) - 1)]
        return Image.fromarray(maker.examples[name]).convert("RGBA"), name
    content, name = asked.get("picture"), str(asked.get("name") or "picture")
    if not isinstance(content, str) or not content:
        raise FewstepError("no picture yet: choose one of the examples, or a file (PNG, JPEG, WebP)")
    try:
        data = base64.b64decode(content, validate=True)
    except binascii.Error:
        raise invalid("picture", content[:20], "a picture in base64") from None
    return load_picture(io.BytesIO(data), name), name.rpartition(".")[0] or name
