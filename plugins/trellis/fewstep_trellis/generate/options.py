"""The options of ``fewstep generate`` as values, and how their text is read. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fewstep.errors import FewstepError, invalid, unknown
from fewstep_trellis.shipped import NANO

T = TypeVar("T", int, float)
STAGES = ("ss", "slat")
MULTI_IMAGE = ("stochastic", "multidiffusion")
BACKGROUND = ("remove", "keep")
NONE = "none"  # --student none: the teacher, also where a shipped student would do


@dataclass(frozen=True)
class Models:
    """Which networks, sampled how.

    Args:
        teacher: pipeline folder or hub name; None: the shipped nano model.
        students: what ``--student`` names, in order.
        steps: by stage; empty: as the pipeline or the contract says.
        guidance: scale by stage, likewise.
        sampler: registered name, for both stages.
        encoder: name, folder or file of the encoder of conditions.
    """

    teacher: str | None = None
    students: tuple[str, ...] = ()
    steps: dict[str, int] | None = None
    guidance: dict[str, float] | None = None
    sampler: str | None = None
    encoder: str | None = None

    @property
    def pipeline(self) -> str | Path:
        """What to open."""
        return NANO if self.teacher is None else self.teacher


@dataclass(frozen=True)
class Options:
    """Everything else: what is made, of what, and where it goes."""

    inputs: tuple[str, ...]
    texts: tuple[str, ...] = ()
    out: Path = Path("generated")
    formats: str | None = None
    samples: int = 1
    seed: int = 42
    multi_image: str | None = None
    background: str = BACKGROUND[0]
    device: str = "auto"
    low_memory: bool = False
    preview: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        if self.multi_image is not None and self.multi_image not in MULTI_IMAGE:
            raise unknown("--multi-image", self.multi_image, MULTI_IMAGE)
        if self.background not in BACKGROUND:
            raise unknown("--background", self.background, BACKGROUND)


def by_stage(option: str, text: str | None, read: Callable[[str], T], least: T) -> dict[str, T] | None:
    """``N`` for both stages, or ``N,M`` for structure and latents; None where the option was not given.

    Raises:
        FewstepError: something else, or a number below ``least``.
    """
    if text is None:
        return None
    parts = text.split(",")
    try:
        values = [read(part) for part in parts]
    except ValueError:
        values = []
    if len(values) not in (1, len(STAGES)) or not all(least <= value < 1e6 for value in values):
        raise invalid(option, text, f"a number from {least} on, or two (structure,latents) such as 2,1")
    return dict(zip(STAGES, values * (2 // len(values)), strict=True))


def check_students(students: tuple[str, ...]) -> None:
    """Raise FewstepError where ``none`` stands beside a student."""
    if NONE in students and len(students) > 1:
        raise FewstepError(f"--student: got {', '.join(students)}; accepted: students, or {NONE!r} alone")
