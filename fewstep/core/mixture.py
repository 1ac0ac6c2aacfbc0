"""Mixtures of isotropic Gaussians: samples, classes, and the exact velocity of their flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.interpolant import Interpolant


@dataclass(frozen=True)
class Mixture:
    """Equally weighted isotropic Gaussians in F dimensions, each belonging to a class.

    Args:
        means: [M, F].
        std: of every component.
        classes: int64 [M], the class of each component, from 0.
    """

    means: Tensor
    std: float
    classes: Tensor

    @property
    def class_count(self) -> int:
        return int(self.classes.max()) + 1

    def draw_labels(self, count: int, generator: torch.Generator) -> Tensor:
        """[count] classes, each as likely as its share of the components."""
        return self.classes[torch.randint(len(self.means), (count,), generator=generator)]

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """[N, F] samples of these classes [N]."""
        belongs = (self.classes[None] == labels[:, None]).to(self.means.dtype)
        component = torch.multinomial(belongs, 1, generator=generator)[:, 0]
        noise = torch.randn(len(labels), self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.std * noise

    def most_probable(self, x: Tensor) -> Tensor:
        """[...] the most probable class of x [..., F]."""
        ones = torch.ones_like(x[..., :1])
        shares = _shares(self.means.to(x.dtype), self.std, x, ones, 0 * ones)
        return (shares @ torch.nn.functional.one_hot(self.classes, self.class_count).to(x.dtype)).argmax(-1)

    def velocity(self, interpolant: Interpolant, x: Tensor, t: Tensor, one_hot: Tensor | None = None) -> Tensor:
        """E[(1 - sigma_min) eps - x0 | x_t = x] in closed form, the marginal velocity of flow matching (Lipman et al.
        2023, arXiv 2210.02747).

        Args:
            x: [..., F]; t: [..., 1].
            one_hot: [..., K], the wanted class; a row of zeros, or None, asks for the whole mixture.
        """
        t = t.expand(*x.shape[:-1], 1)
        a, b = 1 - t, interpolant.sigma_min + (1 - interpolant.sigma_min) * t
        centre = self._centre(x, a, b, one_hot)
        rest = (x - a * centre) / ((a * self.std).square() + b.square())
        return (1 - interpolant.sigma_min) * b * rest - (centre + a * self.std**2 * rest)

    def _centre(self, x: Tensor, a: Tensor, b: Tensor, one_hot: Tensor | None) -> Tensor:
        """E[mean of the component | a x0 + b eps = x], class by class, so that each row sees its own class alone."""
        means = self.means.to(x.dtype)
        if one_hot is None:
            return _shares(means, self.std, x, a, b) @ means
        wanted = torch.where((one_hot > 0).any(-1), one_hot.argmax(-1), -1)
        centre = torch.zeros_like(x)
        for kind in wanted.unique().tolist():
            rows, of_kind = wanted == kind, means if kind < 0 else means[self.classes == kind]
            centre[rows] = _shares(of_kind, self.std, x[rows], a[rows], b[rows]) @ of_kind
        return centre


def _shares(means: Tensor, std: float, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[..., M] p(component | a x0 + b eps = x). Distances are taken from the centre of the means: they stay small, and
    |x|^2, which all components share, is left out."""
    middle = means.mean(0)
    around = means - middle
    squares = a.square() * around.square().sum(-1) - 2 * a * ((x - a * middle) @ around.T)
    return (squares / (-2 * ((a * std).square() + b.square()))).softmax(-1)
