"""Work that a step can save without changing what it computes, each kind with its switch.

All are on where they pay: ``groups`` on GPUs only (larger passes leave a CPU's caches; it can be asked for), ``graphs``
nowhere unless asked for, as long as no GPU has measured it. The environment variable FEWSTEP_ECONOMY names those to
use, separated by commas, or is ``all`` or ``none``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

from fewstep.errors import unknown

ENV = "FEWSTEP_ECONOMY"
SWITCHES = {
    "blank": "cross attention to a condition of zeros is one constant vector",
    "keys": "keys and values of a condition are made once for all passes with the same weights",
    "groups": "the nine evaluations of an MDT step run as four larger ones",
    "graphs": "calls of fixed shapes in sampling are recorded as CUDA graphs (fewstep.ops.replay; GPUs only)",
    "products": "dense linear layers use the faster of torch's CPU libraries too (fewstep.ops.gemm)",
}
ON_GPU = frozenset({"groups"})
ON_REQUEST = frozenset({"graphs"})
_OVERRIDE: ContextVar[frozenset[str] | None] = ContextVar("economy", default=None)


@lru_cache(maxsize=8)
def _parsed(text: str) -> frozenset[str]:
    if text == "all":
        return frozenset(SWITCHES)
    words = frozenset(word.strip() for word in text.split(",")) - {"none", ""}
    for word in sorted(words - set(SWITCHES)):
        raise unknown(f"word in the environment variable {ENV}", word, (*SWITCHES, "all", "none"))
    return words


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def on(switch: str, cuda: bool = False) -> bool:
    """Whether this kind of work is to be saved, on a GPU or a CPU; torch.compile asks when it traces.

    Raises:
        FewstepError: for an unknown word in FEWSTEP_ECONOMY.
    """
    override, asked = _OVERRIDE.get(), os.environ.get(ENV, "")
    if override is None and not asked:
        return switch not in ON_REQUEST and (cuda or switch not in ON_GPU)
    return switch in (_parsed(asked) if override is None else override)


@contextmanager
def economy(*switches: str) -> Iterator[None]:
    """Only these switches are on within; the environment is not asked. Raises FewstepError for an unknown one."""
    token = _OVERRIDE.set(_parsed(",".join(switches) or "none"))
    try:
        yield
    finally:
        _OVERRIDE.reset(token)
