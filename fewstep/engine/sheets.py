"""Sample sheets: pictures of what the student makes, every ``train.samples_every`` iterations of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch

from fewstep.config.run import Resolved
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch
from fewstep.core.objective import Step
from fewstep.core.suite import Suite
from fewstep.engine.trackers import Tracker
from fewstep.engine.trainer import Trainer
from fewstep.errors import invalid

SUFFIX, SEED = ".png", 0


class SampleSheets:
    """Draws samples of a run's student as it would be exported now, in its contract's first number of steps.

    Prompts (held-out ones if the data set has any) and noise are the same at each iteration. The run is not affected:
    its draws are functions of seed, step and name, and modes and counted evaluations are restored.

    Args:
        trainer: of the run.
        resolved: its config.
        folder: where sheets are written.

    Raises:
        FewstepError: for a backbone and data set whose samples are not pictures.
    """

    def __init__(self, trainer: Trainer, resolved: Resolved, folder: Path) -> None:
        self.trainer, self.export, self.folder = trainer, resolved.config.train.export, folder
        if trainer.processes.rank:
            return
        dataset, data_cls = trainer.dataset, resolved.dataset.load()
        if not isinstance(dataset, data_cls):  # a method's own, such as pairs of the teacher
            dataset = data_cls(resolved.config.data, trainer.teacher.backbone)
        suite: Suite | None = resolved.backbone.load().suite(resolved.config.backbone, dataset)
        if suite is None or SUFFIX not in suite.suffixes:
            names = f"backbone {resolved.backbone.name!r} draws no pictures of samples of {resolved.dataset.name!r}"
            raise invalid("train.samples_every", resolved.config.train.samples_every, f"0, since {names}")
        self.suite = suite

    def draw(self, step: int, outputs: Iterable[Tracker]) -> None:
        """Write ``step-000100.png``, and give it to the trackers that take pictures. All processes must call this.

        Raises:
            FewstepError: for a package that drawing needs, or a full disk.
        """
        network = self.trainer.nets.exported(self.export)
        if self.trainer.processes.rank == 0:
            with self._undisturbed(network):
                path = self._write(network, self.folder / f"step-{step:06}{SUFFIX}")
            for tracker in outputs:
                if (picture := getattr(tracker, "picture", None)) is not None:
                    picture("samples", path, step)
        self.trainer.processes.wait()

    @cached_property
    def prompts(self) -> Batch:
        """The prompts of all sheets, on the CPU."""
        return self.suite.prompts(self.suite.sampled)

    def _write(self, network: Backbone, path: Path) -> Path:
        device, contract = self.trainer.device, self.trainer.contract
        self.suite.to(device)
        noise, here = self.suite.noise(SEED, self.prompts), self.prompts.to(device)
        step = Step(index=0, interpolant=network.interpolant, seed=SEED, device=device)
        with torch.no_grad():
            x = contract.sample(network, noise.to(device), here.cond, here.layout, contract.steps[0], step)
        self.suite.write(self.suite.decode(x.cpu(), self.prompts.layout), path, self.prompts)
        return path

    @contextmanager
    def _undisturbed(self, network: Backbone) -> Iterator[None]:
        """The network in evaluation mode on the run's device; its state is restored afterwards."""
        modes, counts = {module: module.training for module in network.modules()}, self.trainer.budget.snapshot()
        network.to(self.trainer.device).eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            self.trainer.budget.reset(counts)
            if network is self.trainer.nets.shell:  # of sharded networks: the gathered weights are no longer needed
                network.to("meta")
