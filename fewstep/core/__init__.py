"""What authors of objectives, backbones and data sets implement or read, gathered from the modules of this package."""

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.compose import Sum
from fewstep.core.contract import Contract
from fewstep.core.dataset import Dataset, PackedDataConfig
from fewstep.core.derivatives import Tangents
from fewstep.core.guidance import Guidance, VelocityField
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout, Packed
from fewstep.core.objective import Nets, NetSpec, Objective, Phase, Step, means, per
from fewstep.core.suite import Record, SheetRow, Suite
from fewstep.core.times import TimeSampler

__all__ = [
    "Backbone",
    "Batch",
    "Condition",
    "Contract",
    "Dataset",
    "Dense",
    "Guidance",
    "Interpolant",
    "Layout",
    "NetSpec",
    "Nets",
    "Objective",
    "Packed",
    "PackedDataConfig",
    "Phase",
    "Record",
    "SheetRow",
    "Step",
    "Strict",
    "Suite",
    "Sum",
    "Tangents",
    "Teacher",
    "TimeSampler",
    "VelocityField",
    "means",
    "per",
]
