"""AdamW for one network, with a learning-rate schedule and gradient clipping."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.config.train import TrainConfig
from fewstep.core.objective import NetSpec
from fewstep.engine.parallel import placed, whole
from fewstep.errors import FewstepError, first_line, invalid, need

MOMENTS = ("exp_avg", "exp_avg_sq")  # of torch's AdamW
MOMENTS_8BIT = ("state1", "state2")  # of bitsandbytes'
BLOCK, SMALL = 256, 4096  # bitsandbytes has a scale for each block, and keeps tensors below SMALL in float32


@dataclass(frozen=True)
class LRSchedule:
    """The learning rate as a factor of ``train.lr``: a linear warm-up, then constant or falling to 0."""

    config: TrainConfig

    def __call__(self, step: int) -> float:
        """The factor at iteration ``step``, counted from 0."""
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
    """The largest gradient norm of the next update, and the norms that it depends on, all on the device.

    "adaptive" follows TRELLIS: ``clip_norm`` alone until ``clip_buffer`` norms have been seen, then the smaller of
    ``clip_norm`` and a percentile of the last ``clip_buffer`` (unclipped, finite) norms.
    """

    def __init__(self, config: TrainConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        size = config.clip_buffer if config.clip == "adaptive" else 0
        self._last = torch.full((size,), math.nan, dtype=torch.float64, device=device)  # oldest first, NaN: none yet

    @property
    def limit(self) -> Tensor:
        """The norm above which the gradient is scaled down; infinity for none."""
        wanted = math.inf if self.config.clip == "none" else self.config.clip_norm
        fixed = torch.full((), wanted, dtype=torch.float64, device=self._last.device)
        if self.config.clip != "adaptive":
            return fixed
        usual = torch.quantile(self._last, self.config.clip_percentile / 100)
        return torch.where(self._last[0].isnan(), fixed, torch.minimum(fixed, usual))

    def record(self, norm: Tensor) -> None:
        """Remember the norm of an update, if it is finite and the clipping is adaptive."""
        if self.config.clip == "adaptive":
            later = torch.cat([self._last[1:], norm.detach().to(self._last)[None]])
            self._last = torch.where(norm.isfinite(), later, self._last)

    @property
    def norms(self) -> list[float]:
        """The remembered norms, oldest first."""
        return [norm for norm in self._last.tolist() if not math.isnan(norm)]

    @norms.setter
    def norms(self, norms: list[float]) -> None:
        self._last[len(self._last) - len(norms) :] = torch.tensor(norms, dtype=torch.float64)


def adamw(parameters: Iterable[nn.Parameter], lr: float, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW as ``train.optimizer`` says; on CUDA torch's is always the fused one, whose step takes a few launches.

    Raises:
        FewstepError: if bitsandbytes is not installed, or there is no such AdamW for the device.
    """
    trained = list(parameters)
    device = trained[0].device
    options: dict[str, Any] = {"lr": lr, "betas": config.betas, "weight_decay": config.weight_decay}

    def made(parameters: list[nn.Parameter]) -> Any:
        if config.optimizer == "adamw8bit":
            return need("bitsandbytes").optim.AdamW8bit(parameters, **options, min_8bit_size=SMALL)
        fused = config.optimizer == "fused" or device.type == "cuda"
        return torch.optim.AdamW(parameters, fused=fused, **options)

    if config.optimizer != "adamw":  # the others fail only in their first step on a device that they do not support
        probe = nn.Parameter(torch.zeros(1, device=device))
        probe.grad = torch.zeros_like(probe)
        try:
            made([probe]).step()
        except RuntimeError as error:
            accepted = f"adamw on {device.type} ({first_line(error)})"
            raise invalid("train.optimizer", config.optimizer, accepted) from None
    optimizer: torch.optim.Optimizer = made(trained)
    return optimizer


def state_bytes(optimizer: str, parameters: Iterable[Tensor]) -> int:
    """Bytes that the states of ``train.optimizer`` take."""
    sizes = [p.numel() for p in parameters]
    if optimizer == "adamw8bit":
        return sum(2 * (n + 4 * math.ceil(n / BLOCK)) if n >= SMALL else 8 * n for n in sizes)
    return 8 * sum(sizes)


class NetOptimizer:
    """AdamW over the trainable parameters of one network.

    Args:
        name: the network's name, for errors and the checkpoint.
        parameters: by name.
        spec: the network's own settings, in place of the run's.
    """

    def __init__(self, name: str, parameters: Mapping[str, nn.Parameter], spec: NetSpec, config: TrainConfig) -> None:
        own = {"betas": spec.betas, "weight_decay": spec.weight_decay}
        config = config.model_copy(update={key: value for key, value in own.items() if value is not None})
        self.name, self.scale, self.config = name, spec.lr_scale, config
        self.named = dict(parameters)
        self.adam = adamw(self.named.values(), config.lr * self.scale, config)
        self.clipper = Clipper(config, next(iter(self.named.values())).device)

    def lr(self, step: int) -> float:
        """The learning rate of iteration ``step``."""
        return self.config.lr * self.scale * LRSchedule(self.config)(step)

    @property
    def has_gradient(self) -> bool:
        """Whether the loss reached any of the parameters."""
        return any(parameter.grad is not None for parameter in self.named.values())

    def update(self, step: int, scaler: torch.amp.GradScaler) -> Tensor:
        """Clip and apply the gradients of iteration ``step``; returns their norm before clipping, on the device."""
        self.set_lr(step)
        scaler.unscale_(self.adam)
        norm = self.clip()
        scaler.step(self.adam)
        self.adam.zero_grad(set_to_none=True)
        return norm

    def clip(self) -> Tensor:
        """Scale the gradients down to the limit; returns their norm before that, on the device."""
        norm = whole(nn.utils.get_total_norm([p.grad for p in self.named.values() if p.grad is not None]))
        if self.config.clip != "none":
            # torch takes a limit on the host. Ours is on the device, so its ratio to one on the host scales the norm.
            least = self.config.clip_norm
            measured = norm * (least / self.clipper.limit).to(norm)
            nn.utils.clip_grads_with_norm_(self.named.values(), least, measured)
        self.clipper.record(norm)
        return norm

    def set_lr(self, step: int) -> None:
        """Use the learning rate of iteration ``step`` from now on."""
        for group in self.adam.param_groups:
            group["lr"] = self.lr(step)

    def state(self) -> dict[str, Tensor]:
        """The moments by ``<parameter>/<moment>`` and the clip buffer, oldest norm first."""
        out = {"clip": torch.tensor(self.clipper.norms, dtype=torch.float64)}
        for name, parameter in self.named.items():
            moments = self.adam.state.get(parameter, {})
            out.update({f"moments/{name}/{key}": torch.as_tensor(value) for key, value in moments.items()})
        return out

    def places(self) -> dict[str, Tensor]:
        """For each moment that is shaped like its parameter, the parameter, by the moment's name in ``state``."""
        keys = MOMENTS_8BIT if self.config.optimizer == "adamw8bit" else MOMENTS
        return {f"moments/{name}/{key}": p for name, p in self.named.items() for key in keys}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``.

        Raises:
            FewstepError: for moments of another shape or of an unknown parameter.
        """
        places, moments_of = self.places(), defaultdict[str, dict[str, Any]](dict)
        for key, value in state.items():
            name, _, moment = key.removeprefix("moments/").rpartition("/")
            if key == "clip":
                continue
            if name not in self.named or (key in places and value.shape != places[key].shape):
                accepted = list(places[key].shape) if key in places else "nothing of this name"
                raise FewstepError(f"optimiser of {self.name!r}, {key}: got {list(value.shape)}, accepted {accepted}")
            moments_of[name][moment] = self._loaded(moment, value, self.named[name])
        self.clipper.norms = state["clip"].tolist()
        for name, moments in moments_of.items():  # parameters that no gradient has reached yet have none
            self.adam.state[self.named[name]] = moments

    def _loaded(self, moment: str, value: Tensor, parameter: nn.Parameter) -> Any:
        if moment != "step":
            return placed(value, parameter).to(parameter.device)
        if self.config.optimizer == "adamw8bit":
            return int(value)
        # torch's AdamW keeps its counter on the CPU unless it is fused.
        return value.to(parameter.device if self.adam.defaults["fused"] else "cpu", copy=True)
