"""The networks as a loss sees them, with the teacher's weights in host memory until a loss asks for the teacher."""

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
        parked: whether the teacher's weights are in host memory, since nothing has asked for the teacher yet.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], emas: Mapping[tuple[str, float], nn.Module], device: torch.device
    ) -> None:
        super().__init__(modules, emas)
        self.device, self.parked = device, False

    def park(self) -> None:
        """Move the teacher's weights to host memory. The first access to ``nets.teacher`` moves them back."""
        self._modules["teacher"].to("cpu")
        self.parked = True

    def __getattr__(self, name: str) -> Any:
        network = super().__getattr__(name)
        if name == "teacher" and self.parked:
            network.to(self.device)
            self.parked = False
        return network
