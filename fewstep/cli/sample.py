"""``fewstep sample``: draw from an exported student as its contract says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.text import Text
from typer import Argument, Option

from fewstep.cli.lists import whole
from fewstep.config.base import validate
from fewstep.errors import FewstepError, invalid
from fewstep.plugins.registry import Entry, registry

if TYPE_CHECKING:
    from fewstep.core.batch import Batch
    from fewstep.core.contract import Contract
    from fewstep.core.suite import Suite


def sample(
    path: Annotated[Path, Argument(help="Folder of a student, or of the run that made it.")],
    steps: Annotated[int | None, whole("--steps", "Sampling steps; by default its contract's first.", 1, 1000)] = None,
    sampler: Annotated[str | None, Option(help="Sampler; by default its contract's.")] = None,
    count: Annotated[int, whole("--count", "How many samples.", 1, 4096, "-n")] = 8,
    seed: Annotated[int, whole("--seed", "Seed of the noise.", 0, 2**31 - 1)] = 0,
    out: Annotated[Path, Option("--out", "-o", help="File or folder to write; must not exist.")] = Path("samples.png"),
    image: Annotated[Path | None, Option(help="Condition on this picture, not on held-out prompts.")] = None,
) -> None:
    """Sample from a student."""
    _check_out(out)
    _check_image(image)
    draw = registry().get("sampler", sampler) if sampler is not None else None

    from fewstep.engine.export import load_student

    student, info = load_student(path)
    contract = info.contract
    draw = draw or registry().get("sampler", contract.sampler)
    steps = steps or contract.steps[0]
    for line in departures(contract, draw.name, steps):
        print(f"warning: {line}", file=sys.stderr)
    suite = _suite(info, student)
    x, batch = generate(student, contract, draw.load(), prompts(suite, image, count), steps, seed)
    try:
        files = suite.write(suite.decode(x, batch.layout), out)
    except OSError as error:
        raise FewstepError(f"--out: got {str(out)!r}; accepted: a path to write to ({error.strerror})") from None
    text = f"{count} samples, {steps} steps, {draw.name}: {', '.join(map(str, files))}"
    Console().print(Text(text), soft_wrap=True)


def _check_out(out: Path) -> None:
    """Before any work: nothing is overwritten, and what lies above ``out`` is a folder."""
    if out.exists():
        raise FewstepError(f"--out: {str(out)!r} exists; accepted: a path that does not, nothing is overwritten")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise FewstepError(f"--out: got {str(out)!r}; accepted: a path to write to ({above} is no folder)")


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


def departures(contract: Contract, sampler: str, steps: int) -> list[str]:
    """What the user asked for against the student's contract."""
    found = []
    if sampler != contract.sampler:
        found.append(f"the student was made for sampler {contract.sampler!r}, got {sampler!r}")
    if steps not in contract.steps:
        made_for = ", ".join(map(str, contract.steps))
        found.append(f"the student was made for {made_for} steps, got {steps}")
    return found


def prompts(suite: Suite, image: Path | None, count: int) -> Batch:
    """``count`` samples to make: of one picture, or of the held-out prompts in turn."""
    import torch

    batch = suite.prompts(count) if image is None else suite.prompt_from(image)
    return batch.select(torch.arange(count) % batch.layout.batch_size)


def generate(student: Any, contract: Contract, draw: Any, batch: Batch, steps: int, seed: int) -> tuple[Any, Batch]:
    """Samples [like ``batch.x0``] from fresh noise, with the guidance that the contract asks for."""
    from fewstep.core.backbone import Guidance, Teacher
    from fewstep.core.objective import Step

    step = Step(index=0, interpolant=student.interpolant, seed=seed)
    field = Teacher(student, Guidance(contract.guidance)) if contract.guidance != 1.0 else student
    noise = step.randn_like(batch.x0, "noise")
    return draw(field, noise, batch.cond, batch.layout, contract.grid(steps), step), batch


def _suite(info: Any, student: Any) -> Suite:
    backbone, data = registry().get("backbone", info.backbone), registry().get("dataset", info.dataset)
    dataset = data.load()(_config(data, info.config.get("data", {})), student)
    suite: Suite = backbone.load().suite(_config(backbone, info.config.get("backbone", {})), dataset)
    return suite


def _config(entry: Entry, values: dict[str, Any]) -> Any:
    """The config that the student was made with. A path of another machine gives way to this one's default."""
    model = entry.load_config()
    gone = {
        name
        for name, value in values.items()
        if isinstance(value, str)
        and getattr(model.model_fields.get(name), "annotation", None) is Path
        and not Path(value).parent.exists()
    }
    for name in sorted(gone):
        print(
            f"warning: {entry.name}.{name} = {values[name]} is not on this machine: its default is used",
            file=sys.stderr,
        )
    return validate(model, {name: value for name, value in values.items() if name not in gone})
