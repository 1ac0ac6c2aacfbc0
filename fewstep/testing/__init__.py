"""Conformance checks: a plugin's own tests call them to learn whether its parts keep fewstep's contracts.

``check_objective(MyObjective)`` and ``check_backbone(my_backbone, batch)`` raise an ``AssertionError`` with a sentence
that says what is wrong; a check that passes returns None. All run on a CPU in seconds.
"""

from fewstep.testing.backbones import check_backbone
from fewstep.testing.objectives import check_objective
from fewstep.testing.tiny import TinyBackbone, tiny_batch

__all__ = ["TinyBackbone", "check_backbone", "check_objective", "tiny_batch"]
