"""The sections, in order of importance, and the seconds that each may take. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

TOTAL = 520.0  # seconds of a whole run; a call on the device machine ends at 600
HALVES, SINGLE = ("float16", "bfloat16"), ("float32",)


@dataclass(frozen=True)
class Section:
    """A process of its own, so that a kernel which breaks the device's state takes nothing else with it.

    Args:
        name: in the rows.
        module: of ``benchmarks.gpu.sections``.
        seconds: what it may take.
        wave: sections of one wave run side by side; timings run alone.
        arguments: of the module's function ``run``, after the bench.
    """

    name: str
    module: str
    seconds: float
    wave: int
    arguments: dict[str, Sequence[str]] = field(default_factory=dict)


def _correct(name: str, ops: Sequence[str], dtypes: Sequence[str] = HALVES + SINGLE) -> Section:
    return Section(f"correct-{name}", "correct", 130.0, 1, arguments={"ops": ops, "dtypes": dtypes})


SECTIONS = (
    Section("environment", "environment", 30.0, 0),
    _correct("varlen", ("varlen_attention",), HALVES),
    _correct("varlen-single", ("varlen_attention",), SINGLE),
    _correct("windows", ("windowed_attention", "attention")),
    _correct("convolution", ("submanifold_conv",)),
    _correct("norms", ("modulated_norm", "gated_residual", "qk_rms_norm")),
    Section("warm-attention", "warm", 130.0, 1, arguments={"modules": ("attention",)}),
    Section("warm-others", "warm", 130.0, 1, arguments={"modules": ("convolution", "windows", "norms")}),
    Section("attention", "attention", 105.0, 2),
    Section("train", "train", 95.0, 3),
    Section("pipeline", "pipeline", 65.0, 4),
    Section("convolution", "convolution", 40.0, 5),
    Section("windows", "windows", 35.0, 6),
    Section("norms", "norms", 20.0, 7),
)


def waves(names: Sequence[str] | None = None) -> list[list[Section]]:
    """The sections wave by wave, those of the given names only."""
    wanted = [s for s in SECTIONS if names is None or s.name in names]
    return [list(group) for _, group in groupby(wanted, key=lambda s: s.wave)]


def takes(wave: Sequence[Section]) -> float:
    """Seconds of a wave: its longest section."""
    return max(section.seconds for section in wave)


def allowance(wave: Sequence[Section], later: Sequence[Sequence[Section]], left: float) -> float:
    """Seconds that a wave may take of those that are left.

    Its own, and what earlier waves did not use; when too little is left, it comes before the later ones.
    """
    return max(min(takes(wave), left), left - sum(takes(w) for w in later))
