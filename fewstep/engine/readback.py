"""Copying numbers from the device to the host, which does not wait for them."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """A copy of numbers that the device is still computing, started without waiting for them.

    Args:
        values: [N] on any device. From CUDA they go to page-locked memory; elsewhere they are read when needed.
    """

    def __init__(self, values: Tensor) -> None:
        self._host, self._done = values, None
        if values.is_cuda:
            self._host = torch.empty_like(values, device="cpu", pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))

    @property
    def arrived(self) -> bool:
        """Whether ``numbers`` would return at once."""
        return self._done is None or self._done.query()

    def numbers(self) -> list[float]:
        """The numbers; waits until they have arrived."""
        if self._done is not None:
            self._done.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers
