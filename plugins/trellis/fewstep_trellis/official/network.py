"""What a data set asks of the teacher's network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewstep.core.backbone import Backbone


def arguments_of(backbone: Backbone) -> dict[str, Any]:
    """The constructor arguments of a backbone's network; none are known of a foreign one."""
    return dict(getattr(getattr(backbone, "model", None), "args", {}))


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next(module.parameters()).device
