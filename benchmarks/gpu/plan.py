"""The sections in order, and the seconds that each may take. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

TOTAL = 300.0  # seconds per half: two halves fit a GPU rented for 15 minutes, with time to spare
KERNELS, WHOLE = "kernels", "whole"
HALVES, SINGLE = ("float16", "bfloat16"), ("float32",)


@dataclass(frozen=True)
class Section:
    """A part of the benchmark in a process of its own, so that a kernel which corrupts the device breaks nothing else.

    Args:
        name: its name in the rows.
        module: its module in ``benchmarks.gpu.sections``.
        seconds: what it may take.
        wave: sections of one wave run in parallel; timings run alone.
        half: the half it belongs to; None: whichever runs first.
        arguments: keyword arguments of the module's function ``run``.
    """

    name: str
    module: str
    seconds: float
    wave: int
    half: str | None = KERNELS
    arguments: dict[str, Sequence[str]] = field(default_factory=dict)


def _correct(name: str, ops: Sequence[str], dtypes: Sequence[str] = HALVES + SINGLE) -> Section:
    return Section(f"correct-{name}", "correct", 110.0, 1, arguments={"ops": ops, "dtypes": dtypes})


SECTIONS = (
    Section("environment", "environment", 20.0, 0, None),
    _correct("varlen", ("varlen_attention",), HALVES),
    _correct("varlen-single", ("varlen_attention",), SINGLE),
    _correct("windows", ("windowed_attention", "attention")),
    _correct("convolution", ("submanifold_conv",)),
    _correct("norms", ("modulated_norm", "gated_residual", "qk_rms_norm")),
    Section("warm-attention", "warm", 110.0, 1, arguments={"modules": ("attention",)}),
    Section("warm-others", "warm", 110.0, 1, arguments={"modules": ("convolution", "windows", "norms")}),
    Section("attention", "attention", 85.0, 2),
    Section("convolution", "convolution", 35.0, 3),
    Section("windows", "windows", 30.0, 4),
    Section("norms", "norms", 20.0, 5),
    Section("pipeline", "pipeline", 120.0, 6, WHOLE),
    Section("train", "train", 160.0, 7, WHOLE),
)


def chosen(half: str | None, names: Sequence[str] | None, done: Sequence[str] = ()) -> list[str]:
    """The sections of a half (None: of both) among ``names`` (None: all), without the roofline if it is ``done``."""
    fits = [s for s in SECTIONS if half in (None, s.half) or (s.half is None and s.name not in done)]
    return [s.name for s in fits if names is None or s.name in names]


def waves(names: Sequence[str] | None = None) -> list[list[Section]]:
    """The sections wave by wave, only those named (None: all)."""
    wanted = [s for s in SECTIONS if names is None or s.name in names]
    return [list(group) for _, group in groupby(wanted, key=lambda s: s.wave)]


def takes(wave: Sequence[Section]) -> float:
    """Seconds that a wave takes: those of its longest section."""
    return max(section.seconds for section in wave)


def allowance(wave: Sequence[Section], later: Sequence[Sequence[Section]], left: float) -> float:
    """Seconds that a wave may take of those left.

    Its own seconds, plus what earlier waves did not use. When too little is left, it takes precedence over later waves.
    """
    return max(min(takes(wave), left), left - sum(takes(w) for w in later))
