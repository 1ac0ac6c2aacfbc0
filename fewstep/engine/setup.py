"""The parts of a run: device, networks and optimisers, and how they are spread over processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fewstep.config.parallel import ParallelConfig
from fewstep.config.train import LoRAConfig, TrainConfig
from fewstep.core.backbone import Teacher
from fewstep.core.dataset import Dataset, Progress, silent
from fewstep.core.objective import Objective
from fewstep.engine.budget import Budget, Counts
from fewstep.engine.derivatives import Derivatives
from fewstep.engine.device import autocast, emulates_bf16, pick_device
from fewstep.engine.gradients import Gradients
from fewstep.engine.networks import Networks
from fewstep.engine.optim import NetOptimizer
from fewstep.engine.parallel import Parallel
from fewstep.engine.processes import Processes
from fewstep.engine.readback import Readback
from fewstep.engine.reading import Reader
from fewstep.errors import invalid


class Setup:
    """All parts of a run, built from its config before its first iteration.

    Args:
        objective: the method, which owns losses and phases.
        teacher: moved to the run's device here.
        dataset: what the run trains on.
        config: the ``train`` table.
        seed: of every draw of the run.
        say: takes lines for the user.
        lora: the ``lora`` table; by default no adapters.
        processes: those that share the work.
        parallel: the ``parallel`` table.

    Raises:
        FewstepError: for a device, precision, network, optimiser or EMA rate that does not exist or does not fit.
    """

    def __init__(
        self,
        objective: Objective[Any],
        teacher: Teacher,
        dataset: Dataset,
        config: TrainConfig,
        seed: int = 0,
        say: Callable[[str], None] = print,
        lora: LoRAConfig | None = None,
        processes: Processes | None = None,
        parallel: ParallelConfig | None = None,
    ) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.objective, self.dataset, self.config, self.seed, self.say = objective, dataset, config, seed, say
        self.contract = objective.contract()
        self.device = pick_device(config.device)
        self.processes = processes or Processes()
        self.micro_batches = self.processes.share(config.accumulate)
        adapted = lora is not None and lora.rank > 0
        size = 0 if adapted else sum(parameter.numel() for parameter in teacher.parameters())
        self.parallel = Parallel(parallel or ParallelConfig(), self.processes, self.device, size)
        if config.optimizer == "adamw8bit" and self.parallel.mesh is not None:
            accepted = "adamw or fused where networks are sharded; or parallel.kind=ddp"
            raise invalid("train.optimizer", config.optimizer, accepted)
        self.teacher = teacher.to("cpu" if self.parallel.mesh else self.device)
        autocast(config.precision, self.device)
        if config.precision == "bf16" and emulates_bf16(self.device):
            say("warning: train.precision=bf16 is emulated by this CPU, many times slower than train.precision=fp32")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        specs, warmup = objective.networks(), config.ema_warmup
        if adapted and config.precision == "fp32":  # parameters shared by student and teacher have one type
            self.teacher.backbone.float()
        self.nets = Networks(
            specs, self.teacher, self.device, config.ema, seed, warmup, objective.needs, lora, self.parallel
        )
        self.derivatives = Derivatives(self.nets.chosen(config.export).provides, say)
        self.optimizers = {
            name: NetOptimizer(name, parameters, specs[name], config)
            for name, parameters in self.nets.parameters.items()
        }
        self.step, self.seconds, self.reads_total, self.budget = 0, 0.0, False, Budget()
        emas = [(name, ema) for (name, _), ema in self.nets.emas.items()]
        for name, module in [("teacher", teacher.backbone), *self.nets.trained.items(), *emas]:
            self.budget.watch(name, module)
        self.skipped = dict.fromkeys(self.optimizers, 0)  # consecutive updates that an fp16 overflow prevented
        self.pending = deque[tuple[dict[str, Any], Readback]]()  # rows whose numbers are being copied to the host
        self.reader, self.gradients = Reader(self), Gradients(self)

    @property
    def evaluations(self) -> Counts:
        """What the run has cost so far, summed over all processes, each of which must call this."""
        return self.processes.total(self.budget.snapshot())

    def prepare(self, progress: Progress = silent) -> None:
        """Let the data set do its slow work. Its cost counts once, even if it comes from a cache or a checkpoint."""
        self.teacher.to(self.device)
        counts = self.budget.snapshot()
        with self.processes.in_turn():
            self.dataset.prepare(self.device, progress)
        self.budget.reset(counts)
        if self.step == 0 and self.processes.rank == 0:
            self.budget.counts["teacher"]["forward"] += self.dataset.evaluations
        self.parallel.shard(self.teacher.backbone)  # only now: the data may have needed all of it in one process
        if self.parallel.mesh is not None:
            self.teacher.guidance = replace(self.teacher.guidance, always=True)
        if self.parallel.mesh is None and not self.nets.lora.rank:  # shards and shared parameters must not be moved
            self.nets.view.park()
