"""Flows of both stages as the cases of objectives and samplers need them: a backbone, and the layout of its samples."""

from __future__ import annotations

from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.flow import Flow
from fewstep_trellis.models import MODELS, SLatFlowModel, SparseStructureFlowModel
from fewstep_trellis.slat import StructuredLatentFlow
from torch import Tensor

from fewstep.core.layout import Dense, Layout, Packed
from golden.cases import Record
from golden.models import build

BACKBONES: dict[type, type[Flow]] = {
    SparseStructureFlowModel: StructureFlow,
    SLatFlowModel: StructuredLatentFlow,
}


def is_flow(class_name: str) -> bool:
    """Whether the class is one of a flow that has a backbone."""
    return MODELS.get(class_name) in BACKBONES


def flow(record: Record, state: dict[str, Tensor], source: str) -> Flow:
    """The backbone of a record's class and arguments with the given weights."""
    model = build(record, state, source)
    return BACKBONES[type(model)](model)


def layout_of(x: Tensor, coords: Tensor | None) -> Layout:
    """Dense for x [B, ...]; with coords [T, 4] (sample, x, y, z) packed, as many samples as the largest index says."""
    return Dense(len(x)) if coords is None else Packed.of_index(coords[:, 0], coords[:, 1:])
