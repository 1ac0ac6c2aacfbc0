"""A student, with its prompts and how it is sampled."""

from __future__ import annotations

import html
import warnings
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.config.base import validate
from fewstep.config.resolve import data_of
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.dataset import Dataset
from fewstep.core.objective import Step
from fewstep.core.suite import Suite, Unmeasured
from fewstep.engine.export import StudentInfo
from fewstep.errors import FewstepError, invalid
from fewstep.files import file_suffix, new_folder, writing
from fewstep.plugins.registry import Entry, registry

Prompts = Batch | Path | str | int | None


class Student:
    """A few-step student, on one device, with the contract that says how it is sampled.

    Args:
        folder: where the student was read from.
        network: predicts velocity (average velocity, for a distilled student).
        info: the contents of ``config.json``: contract, method, backbone, cost.
        device: where it is sampled.
        data: the data set of the prompts, and its config; by default those of the training.
    """

    def __init__(
        self,
        folder: Path,
        network: Backbone,
        info: StudentInfo,
        device: torch.device,
        data: tuple[Entry, Any] | None = None,
    ) -> None:
        self.folder, self.network, self.info, self.device = folder, network.to(device), info, device
        self.data = data

    @property
    def contract(self) -> Contract:
        """Sampler, step counts, time grid and guidance that the student was made for."""
        return self.info.contract

    @cached_property
    def suite(self) -> Suite:
        """The backbone's held-out evaluation: prompts, decoder, measures, pictures.

        If the data set has no held-out objects, the prompts are training samples.
        """
        backbone = registry().get("backbone", self.info.backbone)
        dataset = self._dataset(backbone)
        config = _config_of(backbone, self.info.config.get("backbone", {}))
        suite: Suite = backbone.load().suite(config, dataset) or Unmeasured(dataset)
        suite.to(self.device)
        return suite

    def _dataset(self, backbone: Entry) -> Dataset:
        """The data set that was asked for, else the one that the student was trained on or, where that cannot be had,
        the backbone's own."""
        if self.data is not None:
            entry, config = self.data
            dataset: Dataset = entry.load()(config, self.network)
            return dataset
        name = self.info.dataset
        try:
            data = registry().get("dataset", name)
            dataset = data.load()(_config_of(data, self.info.config.get("data", {})), self.network)
        except FewstepError as error:
            own = data_of(backbone)
            if own.name == name:
                raise
            text = f"training data {name!r} is not available ({error}): the prompts are {own.name!r}"
            warnings.warn(text, stacklevel=3)
            dataset = own.load()(own.load_config()(), self.network)
        return dataset

    def prompts(self, source: Prompts = None, count: int | None = None, background: str = "remove") -> Batch:
        """What to sample: conditions with a layout and an ``x0`` of the right shape.

        Args:
            source: a picture's path; a number of held-out prompts; None for ``count`` of them, or 8; a batch is
                returned as it is.
            count: number of samples, which cycle through the prompts; by default one for each prompt.
            background: of an opaque picture, "remove" (which needs rembg) or "keep".

        Raises:
            FewstepError: for a picture that cannot be read, a backbone that takes none, or a number below 1.
        """
        if source is not None and not isinstance(source, Batch | Path | str):
            _check_whole("prompts", source, 1)
        if count is not None:
            _check_whole("count", count, 1)
        if isinstance(source, Batch):
            batch = source
        elif isinstance(source, Path | str):
            batch = self.suite.prompt_from(Path(source), background)
        else:
            batch = self.suite.prompts(source or count or 8)
        if count is None:
            return batch
        return batch.select(torch.arange(count) % batch.layout.batch_size)

    def sample(
        self,
        prompts: Prompts = None,
        *,
        steps: int | None = None,
        seed: int = 0,
        sampler: str | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Samples like ``prompts.x0``, on the CPU: [B, ...], or [T, C] packed as ``prompts.layout``.

        What is not given comes from the contract. A departure from the contract is a warning. The starting noise is the
        same on every device.

        Args:
            prompts: a batch, or what ``Student.prompts`` takes.
            steps: sampling steps; by default the contract's first step count.
            seed: of the starting noise and of the noise that a sampler adds.
            sampler: registered sampler, alone ("gamma") or with its share of fresh noise ("gamma:0.3"); by default the
                contract's.
            guidance: strength w, for a student that takes it as an input; by default the contract's.

        Raises:
            FewstepError: for a sampler that is not registered or does not fit the student, a strength for a student
                without that input, steps below 1 or a seed below 0.
        """
        if steps is not None:
            _check_whole("steps", steps, 1)
        _check_whole("seed", seed, 0)
        contract = self.contract.sampled_by(sampler or self.contract.sampler)
        contract = contract if guidance is None else contract.with_strength(guidance)
        steps = steps or contract.steps[0]
        for departure in self.departures(contract, steps):
            warnings.warn(departure, stacklevel=2)
        batch = self.prompts(prompts)
        noise = Step(index=0, interpolant=self.network.interpolant, seed=seed).randn_like(batch.x0, "noise")
        step = Step(index=0, interpolant=self.network.interpolant, seed=seed, device=self.device)
        here = batch.to(self.device)
        samples = contract.sample(self.network, noise.to(self.device), here.cond, here.layout, steps, step)
        return samples.cpu()

    def departures(self, contract: Contract, steps: int) -> list[str]:
        """Where a way of sampling departs from the student's contract, in words."""
        departures = []
        if contract.sampling != self.contract.sampling:
            made_for, got = self.contract.sampling, contract.sampling
            departures.append(f"the student was made for sampler {made_for!r}, got {got!r}")
        if steps not in self.contract.steps:
            departures.append(f"the student was made for {self.contract.made_for}, got {steps}")
        if contract.strengths and contract.strength is not None:
            low, high = contract.strengths
            if not low <= contract.strength <= high:
                departures.append(f"the student was made for guidance {low:g} to {high:g}, got {contract.strength:g}")
        return departures

    def decode(self, latents: Tensor, prompts: Batch) -> Any:
        """The objects that the backbone's decoder makes of samples."""
        return self.suite.decode(latents, prompts.layout)

    def save(self, latents: Tensor, prompts: Batch, path: Path | str) -> list[Path]:
        """Decode samples and write them as a picture or as files; returns the files.

        A new folder appears complete or not at all.

        Raises:
            FewstepError: if ``path`` cannot be written.
        """
        objects, path = self.decode(latents, prompts), Path(path)
        if file_suffix(path) or path.exists():
            with writing(path):
                return self._written(objects, path, prompts)
        with new_folder(path) as temp:
            return [path / file.relative_to(temp) for file in self._written(objects, temp, prompts)]

    def _written(self, objects: Any, path: Path, prompts: Batch) -> list[Path]:
        files = self.suite.write(objects, path, prompts)
        if not isinstance(files, list):
            name = f"{type(self.suite).__name__}.write"
            raise FewstepError(f"{name}: returned {files!r}; accepted: the list of files that it wrote")
        return files

    def __repr__(self) -> str:
        what = f"{self.info.method} of {self.info.backbone}, {self.contract.made_for}"
        return f"Student({str(self.folder)!r}: {what}, {self.device})"

    def _repr_html_(self) -> str:
        info = self.info
        facts: dict[str, object] = {"method": info.method, "backbone": info.backbone, "iterations": info.step}
        facts |= {"weights": info.weights, "folder": self.folder, "device": self.device}
        facts |= self.contract.model_dump()
        rows = (f"<tr><th>{key}</th><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items())
        return f"<table>{''.join(rows)}</table>"


def _config_of(entry: Entry, values: dict[str, Any]) -> Any:
    """The config that the student was made with. A path of another machine is replaced by this machine's default."""
    return validate(entry.load_config(), on_this_machine(entry, values))


def on_this_machine(entry: Entry, values: dict[str, Any]) -> dict[str, Any]:
    """Recorded keys of a plugin's config without the paths that this machine lacks, each of which is a warning."""
    model = entry.load_config()
    absent = [name for name, value in values.items() if _is_missing_path(model, name, value)]
    for name in sorted(absent):
        warnings.warn(f"{entry.name}.{name} = {values[name]} is not on this machine: its default is used", stacklevel=5)
    return {name: value for name, value in values.items() if name not in absent}


def _is_missing_path(model: Any, name: str, value: object) -> bool:
    field = model.model_fields.get(name)
    return isinstance(value, str) and field is not None and field.annotation is Path and not Path(value).parent.exists()


def _check_whole(key: str, value: object, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise invalid(key, value, f"an integer from {least} on")
