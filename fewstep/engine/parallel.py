"""How networks are spread over the processes of a run: replicated, or sharded by FSDP2.

Gradients are means over the processes. torch's ``DistributedDataParallel`` expects one forward pass through its wrapper
for each backward pass. Here a loss may evaluate a network several times, also under ``torch.func.jvp``, and reach a
different set of parameters each iteration, so replicated gradients are averaged after the last micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fewstep.config.parallel import ParallelConfig
from fewstep.core.backbone import Backbone
from fewstep.engine.budget import backbones
from fewstep.engine.processes import Processes
from fewstep.errors import invalid

LARGE = 300_000_000  # number of parameters from which "auto" shards a network
BUCKET = 1 << 24  # numbers that are averaged at once


class Parallel:
    """One way to spread the networks.

    Args:
        size: parameters of the network, for ``kind`` "auto".
    """

    def __init__(self, config: ParallelConfig, processes: Processes, device: torch.device, size: int) -> None:
        self.processes, self.kind = processes, "none" if processes.ranks == 1 else config.kind
        if self.kind == "auto":
            self.kind = "fsdp" if size >= LARGE else "ddp"
        self.mesh = _mesh(config, processes.ranks, device) if self.kind == "fsdp" else None

    def shard(self, module: nn.Module) -> None:
        """Shard a network by the units of its backbones. One without a backbone, such as a small head, is not
        sharded."""
        if self.mesh is None:
            return
        parts = [part for backbone in backbones(module) for part in (*backbone.shard_units(), backbone)]
        if parts and parts[-1] is not module:
            parts.append(module)
        for part in parts:
            # By default the outermost stays gathered until its backward pass, and a network that is only evaluated,
            # such as an average, would never see its new weights.
            fully_shard(part, mesh=self.mesh, reshard_after_forward=True)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of replicated parameters; FSDP2 has averaged those of sharded ones."""
        if self.kind == "none":
            return
        replicated = [p for p in parameters if not isinstance(p, DTensor)]
        counts = self.processes.summed([int(p.grad is not None) for p in replicated])
        reached = [p for p, count in zip(replicated, counts, strict=True) if count]  # in any of the processes
        for parameter in reached:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([cast(Tensor, p.grad) for p in reached]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            flat /= self.processes.ranks
            for gradient, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(mean.view_as(gradient))


def _mesh(config: ParallelConfig, ranks: int, device: torch.device) -> DeviceMesh:
    if config.mesh is None:
        return init_device_mesh(device.type, (ranks,))
    replicas, shards = config.mesh
    if replicas * shards != ranks:
        raise invalid("parallel.mesh", list(config.mesh), f"two factors of {ranks}, the number of processes")
    return init_device_mesh(device.type, (replicas, shards), mesh_dim_names=("replicas", "shards"))


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of consecutive gradients of one type, of about ``BUCKET`` numbers each."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (gradient.dtype != bucket[0].dtype or sum(g.numel() for g in bucket) >= BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has in full, sharded like ``like``."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole(value: Tensor) -> Tensor:
    """A tensor gathered in full on every process."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def unsharded(module: nn.Module, shell: Backbone) -> Backbone:
    """``shell`` with the full weights of ``module`` on the first process. All processes must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Mapping[str, Any] = get_model_state_dict(module, options=options)
    if state:
        shell.load_state_dict(state, assign=True)
    return shell
