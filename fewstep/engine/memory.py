"""The memory that a run will need, by part, before it starts: ``fewstep distill --dry-run --memory auto``.

No weights are loaded: networks are built on torch's meta device, where tensors have no values. A forward and backward
pass of each kind of iteration is run with them at the configured batch size, and the bytes alive at once are counted.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fewstep.config.run import Resolved
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch
from fewstep.core.derivatives import Tangents
from fewstep.core.layout import Packed
from fewstep.core.objective import Objective, Phase, Step, means
from fewstep.core.pairs import Pair
from fewstep.engine.derivatives import Derivatives
from fewstep.engine.device import pick_device
from fewstep.engine.export import holds_info, load_student
from fewstep.engine.networks import Networks
from fewstep.engine.optim import state_bytes
from fewstep.engine.outline import Live, lowered, size
from fewstep.errors import FewstepError, first_line, invalid

GB = 1e9
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SPARE = {  # a factor and bytes on top of what is counted
    "cuda": (1.1, 0.7e9),  # fragments of the allocator; the context, kernels and their workspaces
    "cpu": (1.4, 0.5e9),  # what malloc keeps of what was freed (benchmarks/scale/measure.py); Python and torch
}


@dataclass
class Memory:
    """Bytes by part.

    Attributes:
        parts: what stays allocated for the whole run.
        passes: gradients, and the peak of a forward and backward pass beyond them.
        copies: on the CPU, the copies that a checkpoint is written from while training goes on.
        notes: what the numbers are based on.
    """

    parts: dict[str, int] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)
    copies: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.parts.values()) + sum(self.passes.values()) + self.copies

    def fits(self, room: int, device: str) -> bool:
        """Whether it fits into ``room`` bytes of a "cuda" or "cpu" device, with some to spare."""
        factor, fixed = SPARE.get(device, SPARE["cuda"])
        return factor * self.total + fixed <= room


def expected(resolved: Resolved, device: str | None = None) -> Memory:
    """The memory of one process of a run.

    Args:
        device: "cuda" or "cpu"; by default that of ``train.device``.

    Raises:
        FewstepError: for a backbone whose size is not known without its weights, or if no batch can be made.
    """
    config, device = resolved.config, device or pick_device(resolved.config.train.device).type
    objective: Objective[Any] = resolved.method.load()(config.objective)
    try:
        teacher = outline(resolved).as_teacher(config.backbone)
        if config.lora.rank and config.train.precision == "fp32":
            teacher.backbone.float()
        nets = Networks(
            objective.networks(), teacher, torch.device("meta"), config.train.ema, config.seed, False,
            objective.needs, config.lora,
        )  # fmt: skip
    except (TypeError, NotImplementedError, RuntimeError) as error:
        raise FewstepError(f"the size of {resolved.backbone.name!r} is not known: {first_line(error)}") from error
    memory, seen = Memory(), set[int]()

    def own(module: nn.Module) -> int:
        fresh = [x for x in (*module.parameters(), *module.buffers()) if id(x) not in seen]
        seen.update(map(id, fresh))
        return size(fresh)

    memory.parts["teacher"] = own(teacher)
    memory.parts |= {f"network {name!r}": own(module) for name, module in nets.trained.items()}
    memory.parts["averages (EMA)"] = sum(map(own, nets.emas.values()))
    trained = [p for parameters in nets.parameters.values() for p in parameters.values()]
    memory.parts["optimiser states"] = state_bytes(config.train.optimizer, trained)
    if device == "cpu":
        memory.copies = size(nets.state().values()) + memory.parts["optimiser states"]
    nets.view.parked = device != "cpu" and not config.lora.rank
    total = config.train.steps
    numbers = [*range(min(total, 100)), *range(max(0, total - 100), total)]
    for phase, index in {objective.phase(index): index for index in numbers}.items():
        gradients = size(p for name in phase.trains for p in nets.parameters[name].values())
        live, what = passes(objective, nets, resolved, phase, index)
        beyond = live if config.train.accumulate > 1 else max(0, live - gradients)
        if gradients + beyond > sum(memory.passes.values()):
            memory.passes = {"gradients": gradients, "activations": beyond}
        memory.notes = [what]
    if nets.view.parked:
        memory.parts["teacher"] = 0
        memory.notes.append("no loss asks for the teacher, whose weights wait in the host's memory")
    return memory


def outline(resolved: Resolved) -> Backbone:
    """The teacher's network on the meta device; that of a run of ``fewstep teach`` has to be read."""
    config = resolved.config.backbone
    if holds_info(config.teacher):
        return load_student(config.teacher)[0].to("meta")
    backbone_cls: type[Backbone] = resolved.backbone.load()
    return backbone_cls.outline(config)


def passes(objective: Objective[Any], nets: Networks, resolved: Resolved, phase: Phase, index: int) -> tuple[int, str]:
    """The peak of bytes that the forward and backward pass of a micro-batch add, and for which batch, in words.

    It includes the gradients if there is one micro-batch; with several, they are there before the pass.
    """
    config, backbone = resolved.config, nets.teacher.backbone
    try:
        dataset = resolved.dataset.load()(config.data, backbone)
        batch = dataset.training_batch(index, config.train.batch_size, config.seed, ranks=config.train.accumulate)
        return _passes(objective, nets, config, phase, index, batch), "a batch of the data set"
    except (FewstepError, OSError):
        batch = backbone.example(config.train.batch_size)
        if batch is None:
            raise
    each = f"{list(batch.x0.shape[1:])} each"
    if isinstance(batch.layout, Packed):
        each = f"{batch.layout.lengths_list[0]} rows each"
    return _passes(objective, nets, config, phase, index, batch), f"made-up samples, {each}"


def _passes(objective: Objective[Any], nets: Networks, config: Any, phase: Phase, index: int, batch: Batch) -> int:
    if type(batch) is Batch:  # methods on pairs of the teacher need one
        batch = Pair(batch.x0, batch.layout, batch.cond, noise=batch.x0)
    teacher, batch = nets.teacher, batch.mapped(lambda x: x.to("meta") if x.is_floating_point() else x)
    parameters = [p for name in phase.trains for p in nets.parameters[name].values()]
    peaks: list[int] = []

    def trial(tangents: Tangents) -> None:
        for parameter in parameters:  # with several micro-batches, an earlier one has left gradients
            parameter.grad = torch.zeros_like(parameter) if config.train.accumulate > 1 else None
        step = Step(
            index, teacher.interpolant, config.seed, 0, config.train.steps, tangents, "cpu", teacher.guidance.edges
        )
        with Live() as live, lowered(AUTOCAST[config.train.precision]):
            terms = means(getattr(objective, phase.loss)(batch, nets.view, step))
            loss = torch.stack([term.to("meta") for term in terms.values()]).sum()
            loss.backward()
        peaks.append(live.peak)

    nets.select(phase.trains)
    Derivatives(nets.exported(config.train.export).provides, lambda _: None).of(phase, trial)
    for parameter in parameters:
        parameter.grad = None
    return peaks[-1]


def room(given: str, device: torch.device) -> int:
    """Bytes of a size such as "24GB"; "auto" is the memory of the device.

    Raises:
        FewstepError: for text that is not a size.
    """
    if given != "auto":
        if not (size := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|GB)?", given.strip(), re.IGNORECASE)):
            raise invalid("--memory", given, "auto, or a size such as 24GB")
        return int(float(size[1]) * (2**30 if (size[2] or "").lower() == "gib" else GB))
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
