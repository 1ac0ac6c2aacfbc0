"""``fewstep sample``: draw from an exported student as its contract says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from fewstep.cli.options import DEVICE, whole
from fewstep.console import Console, number_of, say
from fewstep.errors import FewstepError, invalid
from fewstep.files import check_place
from fewstep.plugins.registry import registry


def sample(
    path: Annotated[str, Argument(help="A student's folder, the run's that made it, a shipped name or a hub name.")],
    steps: Annotated[int | None, whole("--steps", "Sampling steps; by default its contract's first.", 1, 1000)] = None,
    sampler: Annotated[str | None, Option(help="Sampler; by default its contract's.")] = None,
    count: Annotated[int, whole("--count", "How many samples.", 1, 4096, "-n")] = 8,
    seed: Annotated[int, whole("--seed", "Seed of the noise.", 0, 2**31 - 1)] = 0,
    out: Annotated[
        Path | None, Option("--out", "-o", help="File or folder to write; must not exist. By default samples.png.")
    ] = None,
    image: Annotated[Path | None, Option(help="Condition on this picture, not on held-out prompts.")] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Sample from a student."""
    if out is not None:
        _check_out(out)
    _check_image(image)
    if sampler is not None:
        registry().get("sampler", sampler)

    from fewstep.api.students import load

    student = load(path, device=device)
    if out is None:
        out = Path("samples").with_suffix(student.suite.suffixes[0])
        _check_out(out)
    prompts = student.prompts(image, count)
    latents = student.sample(prompts, steps=steps, seed=seed, sampler=sampler)
    files = student.save(latents, prompts, out)
    contract = student.contract
    made = number_of(count, "sample"), number_of(steps or contract.steps[0], "step")
    how = ", ".join((*made, sampler or contract.sampler))
    say(Console(), f"{how}: {', '.join(map(str, files))}")


def _check_out(out: Path) -> None:
    """Before any work: nothing is overwritten, and what lies above ``out`` is a folder."""
    check_place("--out", out)
    if out.exists():
        raise FewstepError(f"--out: {str(out)!r} exists; accepted: a path that does not, nothing is overwritten")


def _check_image(image: Path | None) -> None:
    """Before the networks are loaded: a picture that can be decoded to its end."""
    if image is None:
        return
    from PIL import Image

    if not image.is_file():
        raise invalid("--image", str(image), "a picture file; there is none of this name")
    try:
        with Image.open(image) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise invalid("--image", str(image), f"a picture (PNG, JPEG, WebP); {error}") from None
