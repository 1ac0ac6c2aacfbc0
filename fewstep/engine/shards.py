"""Tensors of a sharded run as files of ``torch.distributed.checkpoint`` (DCP); each process writes its part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from fewstep.engine.processes import Processes
from fewstep.errors import FewstepError
from fewstep.files import sha256

SHARDS = "shards"


def is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of them is spread over processes."""
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


def save_shards(tensors: Mapping[str, Tensor], folder: Path | None, processes: Processes) -> dict[str, str]:
    """Write the tensors below ``folder``, which the first process tells the others; returns checksums by file there.

    Raises:
        OSError: on all processes, if any of them cannot write.
    """
    told = [str(folder)]
    dist.broadcast_object_list(told, group=processes.writers)
    place = Path(told[0]) / SHARDS
    try:
        save(dict(tensors), checkpoint_id=place, process_group=processes.writers)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(
            getattr(cause, "errno", None), f"rank {rank}: {getattr(cause, 'strerror', None) or cause}"
        ) from None
    if processes.rank:
        return {}
    return {f"{SHARDS}/{path.name}": sha256(path) for path in sorted(place.iterdir())}


def read_shards(folder: Path, places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that ``save_shards`` wrote, each sharded like the tensor of its name in ``places``, else in full.

    Raises:
        FewstepError: for files that cannot be read.
    """
    place = folder / SHARDS
    known = FileSystemReader(place).read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for name, about in known.items():
        if isinstance(about, TensorStorageMetadata):
            tensors[name] = torch.empty(about.size, dtype=about.properties.dtype)
            if name in places and places[name].shape == about.size:
                tensors[name] = torch.empty_like(places[name])
    try:
        load(tensors, checkpoint_id=place, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise FewstepError(f"checkpoint {str(place)!r} cannot be resumed from: {cause}") from None
    return tensors
