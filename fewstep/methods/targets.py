"""The network that predicts a target: the student itself, without gradient, or its moving average."""

from __future__ import annotations

from typing import Literal, cast

from pydantic import Field
from torch import nn

from fewstep.config.base import Strict
from fewstep.core.objective import Nets, NetSpec


class TargetConfig(Strict):
    """Keys of objectives whose target is another prediction of the student; their ``Config`` derives from this one."""

    target: Literal["student", "ema"] = Field(
        "student", description="network of the target: the student itself (no gradient), or its EMA (moving average)"
    )
    target_ema: float = Field(0.95, ge=0, lt=1, description="decay rate of that EMA (target = ema)")

    def networks(self) -> dict[str, NetSpec]:
        """The student, with the EMA that predicts the target where ``target`` is "ema"."""
        return {"student": NetSpec(ema=(self.target_ema,) if self.target == "ema" else ())}

    def network(self, nets: Nets) -> nn.Module:
        """The network that predicts the target."""
        return nets.ema("student", self.target_ema) if self.target == "ema" else cast(nn.Module, nets.student)
