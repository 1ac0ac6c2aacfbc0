"""``check_backbone``: velocities of the right shape, capabilities as declared, files that load again."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch
from fewstep.core.derivatives import finite_difference
from fewstep.core.layout import Dense, Packed
from fewstep.errors import FewstepError
from fewstep.testing.tiny import near

CAPABILITIES = frozenset(
    {"dense", "packed", "jvp", "two_time", "negative_time", "features", "guidance_input", "policy"}
)
ALONE, DIFFERENCE, FLOAT, HALF = 1e-9, 1e-4, 1e-4, 3e-2  # relative
WIDTHS = (1e-7, 1e-5, 1e-3)  # of finite differences: narrow for features of 1000 t, wide for float32 inside a network


def check_backbone(backbone: Backbone, batch: Batch) -> None:
    """Check what samplers, objectives and the engine rely on in a backbone.

    Checked: the velocity is finite, also at t = 0 and t = 1, and has the shape and type of ``x``; a sample gives the
    same alone as in the batch; tangents, if "jvp" is provided, agree with finite differences; a target time has an
    effect if "two_time" is provided, and is refused if not; negative times, if provided, are told from positive ones;
    features, if provided, have the right shapes; a policy, if provided, starts as the teacher, gives the same for
    several target times as for each, and survives ``save`` and ``load``; an input for the guidance strength, if
    provided, changes nothing at first, then tells strengths apart, and survives ``save`` and ``load``; gradients reach
    the parameters; ``save`` and ``load`` give the same network, in full and in half precision.

    Args:
        backbone: the network; a copy of it is run in float64, in evaluation mode.
        batch: a few samples that it takes.

    Raises:
        AssertionError: with a sentence that names the backbone and what is wrong.
    """
    network = Probe(copy.deepcopy(backbone).double().eval(), batch.cast(torch.float64))
    network.claims_are_known()
    network.gives_velocity()
    network.keeps_samples_apart()
    network.refuses_or_takes_two_times()
    if "negative_time" in backbone.provides:
        network.tells_negative_times()
    if "features" in backbone.provides:
        network.gives_features()
    if "jvp" in backbone.provides:
        network.differentiates()
    network.learns()
    network.survives_a_file()
    if "policy" in backbone.provides:
        network.grows_a_policy()
    if "guidance_input" in backbone.provides:
        network.grows_a_guidance_input()


class Probe:
    """A backbone in float64 with a batch; each method is one check."""

    def __init__(self, backbone: Backbone, batch: Batch) -> None:
        self.backbone, self.batch, self.name = backbone, batch, type(backbone).__name__
        self.t_B = torch.linspace(0.3, 0.9, batch.layout.batch_size, dtype=torch.float64)

    def claim(self, holds: bool, sentence: str) -> None:
        if not holds:
            raise AssertionError(f"{self.name}: {sentence}")

    @torch.no_grad()
    def velocity(self, backbone: Backbone | None = None, factor: float = 1.0) -> Tensor:
        """The velocity of the network under test, or of another, at the times multiplied by ``factor``."""
        t_B = factor * self.t_B
        return cast(Tensor, (backbone or self.backbone)(self.batch.x0, t_B, self.batch.cond, self.batch.layout))

    def claims_are_known(self) -> None:
        odd = sorted(self.backbone.provides - CAPABILITIES)
        self.claim(not odd, f"provides {', '.join(odd)}; known are {', '.join(sorted(CAPABILITIES))}")
        kind = {Dense: "dense", Packed: "packed"}.get(type(self.batch.layout), "")
        self.claim(
            not kind or kind in self.backbone.provides, f"was given a {kind} batch but does not provide {kind!r}"
        )

    def gives_velocity(self) -> None:
        v, x = self.velocity(), self.batch.x0
        self.claim(v.shape == x.shape, f"gives {list(v.shape)} for x {list(x.shape)}; a velocity has the shape of x")
        self.claim(v.dtype == x.dtype, f"gives {v.dtype} for x in {x.dtype}; a velocity has the type of x")
        self.claim(bool(v.isfinite().all()), "gives values that are not finite")
        for t, where in ((1.0, "where every sampler starts"), (0.0, "where heun ends")):
            v = self.backbone(x, torch.full_like(self.t_B, t), self.batch.cond, self.batch.layout)
            self.claim(bool(v.isfinite().all()), f"gives values that are not finite at t = {t:g}, {where}")
        v = self.velocity()
        self.claim(torch.equal(v, self.velocity()), "gives another velocity on a second call in evaluation mode")
        self.claim(not torch.equal(v, self.velocity(factor=0.5)), "does not depend on the time")

    def keeps_samples_apart(self) -> None:
        velocity, layout = self.velocity(), self.batch.layout
        for i in range(layout.batch_size):
            row = torch.tensor([i])
            single = self.batch.select(row)
            with torch.no_grad():
                alone = self.backbone(single.x0, self.t_B[row], single.cond, single.layout)
            together = layout.select(velocity, row)[0]
            self.claim(near(alone, together, ALONE), f"sample {i} alone differs from sample {i} in the batch")

    def refuses_or_takes_two_times(self) -> None:
        provided, network = "two_time" in self.backbone.provides, self.backbone
        if provided:  # a teacher's network may have one time, and its student grows the second
            network = self.backbone.student(frozenset({"two_time"})).double().eval()
        given = (self.batch.x0, self.t_B, self.batch.cond, self.batch.layout)
        try:
            v = network(*given, s_B=0.5 * self.t_B)
        except (FewstepError, TypeError) as error:
            self.claim(not provided, f"provides 'two_time' and refuses s_B: {error}")
            return
        self.claim(provided, "does not provide 'two_time' and yet takes s_B silently; raise a FewstepError")
        self.claim(v.shape == self.batch.x0.shape, "gives another shape with s_B")
        stir(network.parameters())  # the input for the target time may have no effect before training
        told = not torch.equal(network(*given, s_B=0.5 * self.t_B), network(*given, s_B=0 * self.t_B))
        self.claim(told, "provides 'two_time', but its velocity does not depend on s_B, whatever its weights")

    def tells_negative_times(self) -> None:
        v = self.velocity(factor=-1.0)
        fine = bool(v.isfinite().all()) and not torch.equal(v, self.velocity())
        self.claim(fine, "provides 'negative_time', but its velocity at -t is that at t, or not finite")

    def grows_a_guidance_input(self) -> None:
        student, batch = self.backbone.student(frozenset({"guidance_input"})).double().eval(), self.batch

        def ask(network: Backbone, strength: float) -> Tensor:
            guided = replace(batch, cond=batch.cond.with_strength(strength, batch.x0, batch.layout))
            return Probe(network, guided).velocity()

        text = "provides 'guidance_input', but"
        self.claim(torch.equal(ask(student, 3.0), self.velocity()), f"{text} a new student is not as the teacher")
        names = {name for name, _ in self.backbone.named_parameters()}
        stir(parameter for name, parameter in student.named_parameters() if name not in names)
        told = ask(student, 3.0)
        self.claim(not torch.equal(told, ask(student, 8.0)), f"{text} its student does not tell strengths apart")
        self.claim(near(ask(saved(student), 3.0), told, FLOAT), f"{text} save() and load() lose it")

    def gives_features(self) -> None:
        batch, layers = self.batch, self.backbone.taps()
        pairs = isinstance(layers, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in layers)
        self.claim(pairs, f"taps() gives {layers!r:.60}; it must be a list of pairs (module, channels)")
        v, features = self.backbone.features(batch.x0, self.t_B, batch.cond, batch.layout, range(len(layers)))
        self.claim(torch.equal(v, self.velocity()), "gives another velocity beside its features")
        samples = batch.layout.batch_size
        for (_, channels), h in zip(layers, features, strict=True):
            fine = h.shape[-1] == channels and len(h) in (samples, len(batch.x0))
            self.claim(fine, f"gives features {list(h.shape)} from a layer of {channels} channels, which come last")

    @torch.no_grad()
    def grows_a_policy(self) -> None:
        network, text = (
            self.backbone.student(frozenset({"two_time", "policy"})).double().eval(),
            "provides 'policy', but",
        )
        self.claim(near(self.velocity(network), self.velocity(), ALONE), f"{text} a new student is not as the teacher")
        stir(network.parameters())
        given, targets = (self.batch.x0, self.t_B, self.batch.cond, self.batch.layout), torch.tensor([[0.5], [0.0]])
        several = network(*given, s_B=targets * self.t_B)
        one_by_one = torch.stack([network(*given, s_B=s_B) for s_B in targets * self.t_B])
        differs = f"{text} its answers for several target times s_B [K, B] are not those for each"
        self.claim(near(several, one_by_one, ALONE), differs)
        again = saved(network)
        self.claim(near(again(*given, s_B=targets * self.t_B), several, FLOAT), f"{text} save() and load() lose it")

    def differentiates(self) -> None:
        x, generator = self.batch.x0, torch.Generator().manual_seed(0)
        direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        primals, tangents = (x, self.t_B), (direction, torch.ones_like(self.t_B))

        def f(x: Tensor, t_B: Tensor) -> Tensor:
            return cast(Tensor, self.backbone(x, t_B, self.batch.cond, self.batch.layout))

        try:
            exact = torch.func.jvp(f, primals, tangents)[1]
        except (RuntimeError, NotImplementedError) as error:
            raise AssertionError(f"{self.name}: provides 'jvp', but forward mode fails: {error}") from error
        with torch.no_grad():
            rough = [finite_difference(f, primals, tangents, width, self.batch.layout)[1] for width in WIDTHS]
        agrees = any(near(exact, difference, DIFFERENCE) for difference in rough)
        self.claim(agrees, "provides 'jvp', but its tangent is not its finite difference")

    def learns(self) -> None:
        network = copy.deepcopy(self.backbone).train().requires_grad_(True)
        network(self.batch.x0, self.t_B, self.batch.cond, self.batch.layout).square().sum().backward()
        grads = [p.grad for p in network.parameters()]
        self.claim(any(g is not None and bool(g.any()) for g in grads), "no gradient reaches any parameter")
        self.claim(all(bool(g.isfinite().all()) for g in grads if g is not None), "a gradient is not finite")

    def survives_a_file(self) -> None:
        for half, tolerance in ((False, 0.0), (True, HALF)):
            with tempfile.TemporaryDirectory() as folder:
                source = copy.deepcopy(self.backbone).float()
                source.save(Path(folder), half=half)
                self.claim(any(Path(folder).iterdir()), "save() writes nothing")
                again = type(self.backbone).load(Path(folder))
            self.claim(type(again) is type(self.backbone), f"load() gives a {type(again).__name__}")
            text = f"save(half={half}) and load() give another network"
            expected = self.velocity(source.double())
            self.claim(near(self.velocity(again.double().eval()), expected, tolerance), text)


def saved(network: Backbone) -> Backbone:
    """The network from its file, in float64."""
    with tempfile.TemporaryDirectory() as folder:
        copy.deepcopy(network).float().save(Path(folder))
        return type(network).load(Path(folder)).double().eval()


@torch.no_grad()
def stir(parameters: Iterable[nn.Parameter]) -> None:
    """Change weights at random, for inputs that have no effect at first."""
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
