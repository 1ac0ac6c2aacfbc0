"""From pictures to the condition tokens of TRELLIS.2's flows."""

from __future__ import annotations

from fewstep_trellis2.conditioning.dino import DinoV3Conditioner, image_conditioner

__all__ = ["DinoV3Conditioner", "image_conditioner"]
