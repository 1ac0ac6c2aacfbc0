"""How a stage is sampled: by its pipeline's file, or by its student's contract, and by what the user asks instead."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fewstep.core.contract import Contract
from fewstep.core.guidance import Guidance
from fewstep.core.times import step_grid
from fewstep_trellis.pipeline.students import Student

RELEASED = (1, 2)  # steps per stage that MDT-dist reports for its students (arXiv 2509.04406, table 1)


@dataclass(frozen=True)
class Recipe:
    """Sampler as ``Contract.sampled_by`` takes it, steps, guidance, time warp; and a student's contract."""

    sampler: str
    steps: int
    guidance: Guidance
    rescale_t: float
    contract: Contract | None = field(default=None, compare=False)

    @property
    def grid(self) -> list[float]:
        """Times from 1 to 0."""
        return self.contract.grid(self.steps) if self.contract else step_grid(self.steps, self.rescale_t)

    def __str__(self) -> str:
        low, high = self.guidance.interval
        where = "" if (low, high) == (0.0, 1.0) else f" for t in [{low:g}, {high:g}]"
        guided = any(self.guidance.active(t) for t in self.grid[:-1])
        guidance = f"guidance {self.guidance.scale:g}{where}" if guided else "no guidance"
        if self.contract is not None and self.contract.strength is not None:
            guidance = f"guidance {1 + self.contract.strength:g} as an input"
        warp = "" if self.rescale_t == 1.0 else f", rescale_t {self.rescale_t:g}"
        return f"{self.steps} step{'s' if self.steps > 1 else ''}, {self.sampler}, {guidance}{warp}"


class SamplerSpec(Protocol):
    """A stage's sampler in ``pipeline.json``; ``params`` has ``steps`` and ``rescale_t``."""

    @property
    def guidance(self) -> Guidance: ...
    @property
    def params(self) -> Any: ...


@dataclass(frozen=True)
class Asked:
    """What the user asks for a stage; None: as the pipeline or the contract says."""

    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None


def recipe_of(
    spec: SamplerSpec, student: Student | None, asked: Asked = Asked(), released: tuple[int, ...] = RELEASED
) -> tuple[Recipe, list[str]]:
    """The recipe of a stage, and what is to be said about it (departures from a contract, a missing contract).

    Args:
        spec: the stage's sampler in ``pipeline.json``.
        student: what stands in for the stage's flow; None: the flow itself.
        asked: what overrides.
        released: steps that students without a contract are made for; empty: not known.

    Raises:
        FewstepError: for a sampler that is not registered, or does not fit the student.
    """
    own = _of_teacher(spec) if student is None else _of_student(spec, student, released)
    guidance, contract = own.guidance, own.contract or Contract()
    if asked.guidance is not None and contract.strength is not None:
        contract = contract.with_strength(asked.guidance - 1)
        own = replace(own, contract=contract)
    elif asked.guidance is not None:
        guidance = replace(guidance, scale=asked.guidance)
    sampler = contract.sampled_by(asked.sampler or contract.sampler).sampling
    recipe = replace(own, sampler=sampler, steps=asked.steps or own.steps, guidance=guidance)
    if student is None:
        return recipe, []
    if student.contract is not None:
        return recipe, departures(student, recipe)
    return recipe, _missing_contract(student, recipe, released)


def _of_teacher(spec: SamplerSpec) -> Recipe:
    return Recipe("euler", spec.params.steps, spec.guidance, spec.params.rescale_t)


def _of_student(spec: SamplerSpec, student: Student, released: tuple[int, ...]) -> Recipe:
    contract = student.contract
    if contract is None:  # "The sampler during inference is the same as TRELLIS" (arXiv 2509.04406, section 5)
        return replace(_of_teacher(spec), steps=(*released, spec.params.steps)[0])
    return Recipe(contract.sampling, contract.steps[0], Guidance(contract.guidance), contract.rescale_t, contract)


def _missing_contract(student: Student, recipe: Recipe, released: tuple[int, ...]) -> list[str]:
    if not released:
        return [f"{student.path}: carries no sampling contract; sampled as the pipeline's own flow: {recipe}"]
    found = [
        f"{student.path}: carries no sampling contract; sampled as MDT-dist says of its students, with TRELLIS's own "
        f"sampler in {' or '.join(map(str, released))} steps: {recipe}"
    ]
    if recipe.steps not in released:
        found.append(f"{student.path}: {recipe.steps} steps; MDT-dist's students are made for 1 or 2")
    return found


def departures(student: Student, recipe: Recipe) -> list[str]:
    """Where the recipe departs from the student's contract, a line each."""
    contract = student.contract or Contract()
    name = str(student.path)
    found = []
    if recipe.steps not in contract.steps:
        found.append(f"{name}: the student was made for {contract.made_for}, got {recipe.steps}")
    strength = None if recipe.contract is None else recipe.contract.strength
    if contract.strengths and strength is not None and not contract.strengths[0] <= strength <= contract.strengths[1]:
        low, high = (1 + bound for bound in contract.strengths)
        found.append(f"{name}: the student was made for guidance {low:g} to {high:g}, got {1 + strength:g}")
    if recipe.guidance.scale != contract.guidance:
        found.append(f"{name}: the student was made for guidance {contract.guidance:g}, got {recipe.guidance.scale:g}")
    if recipe.sampler != contract.sampling:
        found.append(f"{name}: the student was made for sampler {contract.sampling!r}, got {recipe.sampler!r}")
    return found
