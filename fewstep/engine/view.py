"""The networks as a loss sees them, and the teacher's weights out of the way until a loss asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fewstep.core.objective import Nets


class View(Nets):
    """Networks by name. Losses on stored pairs never ask for the teacher, nor do those that learn from data alone.

    Args:
        device: of the networks.

    Attributes:
        parked: whether the teacher's weights are in the host's memory, since nothing has asked for it.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], emas: Mapping[tuple[str, float], nn.Module], device: torch.device
    ) -> None:
        super().__init__(modules, emas)
        self.device, self.parked = device, False

    def park(self) -> None:
        """Move the teacher's weights to the host's memory. They come back with the first ``nets.teacher``."""
        self._modules["teacher"].to("cpu")
        self.parked = True

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name == "teacher" and self.parked:
            found.to(self.device)
            self.parked = False
        return found
