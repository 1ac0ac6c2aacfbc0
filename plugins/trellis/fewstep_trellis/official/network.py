"""What a data set asks of the teacher's network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewstep.core.backbone import Backbone
from fewstep.errors import FewstepError


def arguments_of(backbone: Backbone) -> dict[str, Any]:
    """The constructor arguments of a backbone's network; none are known of a foreign one."""
    return dict(getattr(getattr(backbone, "model", None), "args", {}))


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next(module.parameters()).device


def check_width(key: str, name: str, channels: int, backbone: Backbone) -> None:
    """Raise FewstepError where a condition's tokens, of width ``channels``, do not fit the network."""
    wanted = arguments_of(backbone).get("cond_channels", channels)
    if wanted != channels:
        raise FewstepError(f"{key}: {name!r} gives tokens of width {channels}; the teacher takes {wanted}")
