"""AdamW for one network, with a learning-rate schedule and gradient clipping."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.config.train import TrainConfig
from fewstep.errors import FewstepError

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class LRSchedule:
    """The learning rate as a factor of ``train.lr``: a linear warm-up, then constant, or a fall to 0."""

    config: TrainConfig

    def __call__(self, step: int) -> float:
        """The factor of iteration ``step``, from 0."""
        config = self.config
        if step < config.warmup:
            return (step + 1) / config.warmup
        done = (step - config.warmup) / max(1, config.steps - config.warmup)
        if config.lr_schedule == "linear":
            return 1 - done
        if config.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0


class Clipper:
    """The largest gradient norm of the next update, and the norms it depends on.

    "adaptive" follows TRELLIS: ``clip_norm`` alone until ``clip_buffer`` norms were seen, from then on the smaller of
    it and a percentile of the last so many (unclipped, finite) norms.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.norms: deque[float] = deque(maxlen=config.clip_buffer)

    @property
    def limit(self) -> float:
        """The norm above which the gradient is scaled down; infinity for none."""
        if self.config.clip == "none":
            return math.inf
        if self.config.clip == "norm" or len(self.norms) < self.config.clip_buffer:
            return self.config.clip_norm
        return min(self.config.clip_norm, float(np.percentile(list(self.norms), self.config.clip_percentile)))

    def record(self, norm: float) -> None:
        """Remember the norm of an update, where it matters."""
        if self.config.clip == "adaptive" and math.isfinite(norm):
            self.norms.append(norm)


class NetOptimizer:
    """AdamW over the trainable parameters of one network.

    Args:
        name: the network's name, for errors and the checkpoint.
        parameters: by name.
        scale: the network's factor on ``train.lr``.
    """

    def __init__(self, name: str, parameters: Mapping[str, nn.Parameter], scale: float, config: TrainConfig) -> None:
        self.name, self.scale, self.config = name, scale, config
        self.named = dict(parameters)
        self.adam = torch.optim.AdamW(
            self.named.values(), lr=config.lr * scale, betas=config.betas, weight_decay=config.weight_decay
        )
        self.clipper = Clipper(config)

    def lr(self, step: int) -> float:
        """The learning rate of iteration ``step``."""
        return self.config.lr * self.scale * LRSchedule(self.config)(step)

    @property
    def has_gradient(self) -> bool:
        """Whether the loss reached any of the parameters."""
        return any(parameter.grad is not None for parameter in self.named.values())

    def clip(self) -> float:
        """Scale the gradients down to the limit; their norm before that."""
        norm = float(nn.utils.clip_grad_norm_(self.named.values(), self.clipper.limit))
        self.clipper.record(norm)
        return norm

    def set_lr(self, step: int) -> None:
        """Use the learning rate of iteration ``step`` from now on."""
        for group in self.adam.param_groups:
            group["lr"] = self.lr(step)

    def state(self) -> dict[str, Tensor]:
        """The moments by ``<parameter>/<moment>`` and the clip buffer, oldest norm first."""
        out = {"clip": torch.tensor(list(self.clipper.norms), dtype=torch.float64)}
        for name, parameter in self.named.items():
            moments = self.adam.state.get(parameter, {})
            out.update({f"moments/{name}/{key}": moments[key] for key in MOMENTS if key in moments})
        return out

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``.

        Raises:
            FewstepError: for moments of another shape or of an unknown parameter.
        """
        shapes = {f"moments/{name}/{key}": p.shape for name, p in self.named.items() for key in MOMENTS}
        shapes |= {f"moments/{name}/step": torch.Size() for name in self.named}
        for key, value in state.items():
            if key != "clip" and value.shape != shapes.get(key):
                accepted = list(shapes[key]) if key in shapes else "nothing of this name"
                raise FewstepError(f"optimiser of {self.name!r}, {key}: got {list(value.shape)}, accepted {accepted}")
        self.clipper.norms.clear()
        self.clipper.norms.extend(state["clip"].tolist())
        for name, parameter in self.named.items():
            found = {key: state[f"moments/{name}/{key}"] for key in MOMENTS if f"moments/{name}/{key}" in state}
            if found:  # a parameter without a gradient so far has no moments
                moments = {key: found[key].to(parameter.device, parameter.dtype) for key in MOMENTS[1:]}
                # AdamW keeps its counter on the CPU unless it is fused or capturable.
                self.adam.state[parameter] = {"step": found["step"].clone(), **moments}
