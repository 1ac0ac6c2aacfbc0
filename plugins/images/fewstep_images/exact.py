"""The exact teacher: the velocity of the smoothed images in closed form."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Condition
from fewstep.core.layout import Layout
from fewstep.core.mixture import Mixture
from fewstep.errors import FewstepError
from fewstep_images.config import ImagesConfig
from fewstep_images.sources import smoothed


class ExactFlow(Backbone):
    """The velocity of images x0 = image + smoothing * noise at x [B, P], a softmax over all images of the class.

    The images are a parameter only so that the backbone has a device and a dtype as networks do.
    """

    Config = ImagesConfig
    provides: ClassVar[frozenset[str]] = frozenset({"dense", "jvp"})
    dataset = "images"

    def __init__(self, config: ImagesConfig) -> None:
        super().__init__()
        self.config = config
        found = smoothed(config)
        self.images = nn.Parameter(found.means, requires_grad=False)
        self.classes: Tensor
        self.register_buffer("classes", found.classes)

    @property
    def mixture(self) -> Mixture:
        return Mixture(self.images.detach(), self.config.smoothing, self.classes)

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        if s_B is not None:
            raise FewstepError("the exact teacher of backbone 'images' takes one time: it does not provide 'two_time'")
        return self.mixture.velocity(self.interpolant, x, layout.expand(t_B, x), cond.tokens)

    def student(self, needs: frozenset[str] = frozenset()) -> Backbone:
        """A closed form cannot be trained: the student is a network fitted to it."""
        from fewstep_images.fitting import fitted

        return fitted(self.config).to(self.images).student(needs)
