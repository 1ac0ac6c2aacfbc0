"""Exponential moving averages (EMA) of the trained networks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_decay(rate: float, updates: int, warmup: bool) -> float:
    """The decay of an EMA at its update number ``updates`` (from 1).

    It is ``rate``, or with warm-up the smaller of ``rate`` and (1 + updates) / (10 + updates), as in TensorFlow's
    ``ExponentialMovingAverage``, so that a young EMA forgets its start sooner.
    """
    return min(rate, (1 + updates) / (10 + updates)) if warmup else rate


class Averages:
    """The EMAs of a run, each of one network at one rate.

    Args:
        networks: the trained networks by name.
        emas: copies of them by name and rate; updated in place.
        warmup: see ``ema_decay``.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], emas: Mapping[tuple[str, float], nn.Module], warmup: bool
    ) -> None:
        self.networks, self.emas, self.warmup = networks, emas, warmup
        self.updates = dict.fromkeys(networks, 0)

    @torch.no_grad()
    def update(self, names: tuple[str, ...]) -> None:
        """Move the EMAs of the networks that were just updated; buffers are copied."""
        for name in names:
            self.updates[name] += 1
        for (name, rate), (own, new, buffers) in self._followed.items():
            if name in names:
                move = get_ema_multi_avg_fn(ema_decay(rate, self.updates[name], self.warmup))  # fused over parameters
                move(own, new, 0)
                for buffer, value in buffers:
                    buffer.copy_(value)

    @cached_property
    def _followed(self) -> dict[tuple[str, float], tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]]:
        """For each EMA: its parameters, those of its network (both without shared ones), and pairs of buffers. Cached,
        because collecting them takes longer than updating them; they stay the same objects from the first update on."""
        followed = {}
        for (name, rate), module in self.emas.items():
            network = self.networks[name]
            pairs = zip(module.parameters(), network.parameters(), strict=True)
            own, new = map(list, zip(*((own, new) for own, new in pairs if own is not new), strict=True))
            followed[name, rate] = own, new, list(zip(module.buffers(), network.buffers(), strict=True))
        return followed
