"""Pairs of the teacher: noise z and the sample Phi_T(z) that the teacher makes of it, sampled once and stored."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from fewstep.config.base import Strict
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch
from fewstep.core.batching import training_order
from fewstep.core.dataset import Dataset, Progress, silent
from fewstep.core.joined import joined_conditions, joined_layouts
from fewstep.core.objective import Step
from fewstep.core.parts import Part, cached, fingerprint, kept
from fewstep.core.samplers import OnStep, Sampler, euler, heun
from fewstep.core.times import step_grid
from fewstep.errors import FewstepError
from fewstep.files import cache_folder

SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun}
PROBED = 8  # pairs whose noise and conditions tell one data set from another


class PairsConfig(Strict):
    """How many pairs there are, and how the teacher is sampled for them. Its guidance and time warp are its own."""

    count: int = Field(2000, ge=1, description="pairs of noise and the teacher's sample from it")
    steps: int = Field(25, ge=1, description="the teacher's sampling steps")
    sampler: Literal["euler", "heun"] = Field("euler", description="the teacher's sampler")
    batch_size: int = Field(
        32, ge=1, description="pairs that the teacher samples at once, and that one file of the cache holds"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the pairs, independent of the run's seed")


@dataclass(frozen=True, kw_only=True)
class Pair(Batch):
    """``x0`` is the teacher's sample from ``noise`` (of the same shape) under the condition."""

    noise: Tensor


class TeacherPairs(Dataset):
    """The teacher's pairs under the conditions, and with the layouts, of another data set.

    Pair i takes the sample at position i of a seeded training order, with what the data set draws for it, so pair i is
    the same however many pairs there are. Noise and samples are kept in the user's cache, under a digest of the
    teacher's weights, guidance and sampling, and of the data; conditions are read from the data set again.

    Args:
        config: the number of pairs, and how the teacher is sampled.
        dataset: the run's data set, dense or packed.
        teacher: of the run.

    Raises:
        FewstepError: from ``prepare`` and ``batch``, where samples of the data set cannot be put together.
    """

    Config = PairsConfig
    provides: ClassVar[frozenset[str]] = frozenset({"pairs"})

    def __init__(self, config: PairsConfig, dataset: Dataset, teacher: Teacher) -> None:
        super().__init__(dataset.config, teacher.backbone)
        self.pairs, self.dataset, self.teacher = config, dataset, teacher
        self.samples = training_order(len(dataset), config.seed, 0, max(config.count, PROBED))
        self._notes: list[str] = []

    def __len__(self) -> int:
        return self.pairs.count

    def loads(self) -> Sequence[int] | None:
        loads = self.dataset.loads()
        return None if loads is None else [loads[sample] for sample in self.samples[: len(self)]]

    def notes(self) -> list[str]:
        said, self._notes = self.dataset.notes() + self._notes, []
        return said

    def prepare(self, device: torch.device, progress: Progress = silent) -> None:
        """Prepare the data set, then sample the teacher on ``device``, or read its samples from the cache."""
        self.dataset.prepare(device, progress)
        folder, doing = cache_folder() / "pairs" / self._key(), "sampling the teacher"

        def make(part: Sequence[int]) -> Part:
            def show(step: int, x: Tensor, data: Tensor) -> None:
                if more := len(part) * step // self.pairs.steps:
                    progress(part[0] + more, len(self), doing)

            return self._sampled(part, device, show)

        parts = cached(folder, range(len(self)), self.pairs.batch_size, make, progress, doing)
        self._notes.append(f"{len(self)} pairs of the teacher: {kept(folder)}")
        self.noise, self.ends = (
            [x for part in parts for x in part[name].split(part["lengths"].tolist())] for name in ("noise", "x0")
        )
        self.evaluations = self.dataset.evaluations + sum(int(part["evaluations"]) for part in parts)

    def batch(self, indices: list[int], generator: torch.Generator) -> Pair:
        """These pairs; nothing is drawn."""
        like = self._like(indices)
        x0, noise = (torch.cat([stored[i] for i in indices]) for stored in (self.ends, self.noise))
        return Pair(x0, like.layout, like.cond, noise=noise)

    def _like(self, pairs: Sequence[int]) -> Batch:
        """The data set's samples of these pairs. What it draws for a pair does not depend on the others."""
        untouched, generator = torch.Generator().get_state(), torch.Generator()
        batch = self.dataset.batch([self.samples[i] for i in pairs], generator)
        if torch.equal(generator.get_state(), untouched):
            return batch
        return self._joined([self._start(i)[0] for i in pairs])

    def _start(self, pair: int) -> tuple[Batch, Tensor]:
        """The data set's sample, and the noise, that a pair begins with."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"pair/{self.pairs.seed}/{pair}".encode()))
        batch = self.dataset.batch([self.samples[pair]], generator)
        return batch, torch.randn(batch.x0.shape, generator=generator, dtype=batch.x0.dtype)

    @torch.no_grad()
    def _sampled(self, part: Sequence[int], device: torch.device, show: OnStep) -> Part:
        batches, noise = zip(*map(self._start, part), strict=True)
        start, counts = self._joined(batches).to(device), list[int]()
        step, sampler = Step(0, self.teacher.interpolant, device=device), SAMPLERS[self.pairs.sampler]
        grid, z = step_grid(self.pairs.steps, self.teacher.rescale_t), torch.cat(noise)
        hook = self.teacher.backbone.register_forward_hook(lambda net, given, out: counts.append(len(given[1])))
        try:
            x0 = sampler(self.teacher, z.to(device), start.cond, start.layout, grid, step, show)
        finally:
            hook.remove()
        lengths, evaluations = torch.tensor([len(x) for x in noise]), torch.tensor(sum(counts))
        return {"noise": z, "x0": x0.cpu(), "lengths": lengths, "evaluations": evaluations}

    def _key(self) -> str:
        """A digest of all that the pairs depend on; their number does not matter."""
        teacher, settings = self.teacher, self.pairs.model_dump(exclude={"count"})
        configs = [config for config in (self.config, getattr(teacher.backbone, "config", None)) if config is not None]
        tables = [config.model_dump(mode="json") for config in configs if isinstance(config, BaseModel)]
        names = [type(self.dataset).__qualname__, type(teacher.backbone).__qualname__, len(self.dataset)]
        guidance = [teacher.guidance.scale, teacher.guidance.interval, teacher.guidance.rescale]
        sampling = [*guidance, teacher.rescale_t, teacher.interpolant.sigma_min]
        text = json.dumps([settings, tables, names, sampling], sort_keys=True)
        tensors = list(teacher.backbone.state_dict().values())
        for batch, noise in map(self._start, range(PROBED)):
            conditions = [value for value in vars(batch.cond).values() if isinstance(value, Tensor)]
            coords = getattr(batch.layout, "coords", None)
            tensors += [noise, *conditions, *([] if coords is None else [coords])]
        return fingerprint(text, tensors)

    def _joined(self, batches: Sequence[Batch]) -> Batch:
        """Batches concatenated; only layouts and conditions are of interest.

        Raises:
            FewstepError: for conditions of different shapes, or another kind of layout.
        """
        try:
            layout = joined_layouts([batch.layout for batch in batches])
            cond = joined_conditions([batch.cond for batch in batches])
        except (RuntimeError, TypeError) as error:
            name = type(self.dataset).__name__
            raise FewstepError(
                f"data set {name} cannot serve pairs: its samples cannot be put together: {error}"
            ) from None
        return Batch(torch.cat([batch.x0 for batch in batches]), layout, cond)
