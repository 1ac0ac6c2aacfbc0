"""What ``fewstep generate`` and ``fewstep export`` with ``--backbone trellis2`` do and print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fewstep_shapes3d.result import MESH
from fewstep_trellis.generate import command
from fewstep_trellis.generate.report import announce, told
from rich.console import Console

from fewstep.console import command as shell
from fewstep.console import say
from fewstep_trellis2.conditioning.dino import check_image_conditioner
from fewstep_trellis2.generate.api import TEXTS, Generator
from fewstep_trellis2.generate.models import Chosen, Models, choose
from fewstep_trellis2.pipeline.export import save_pipeline
from fewstep_trellis2.pipeline.loading import Pipeline
from fewstep_trellis2.pipeline.spec import TEXTURE_DECODER


@dataclass(frozen=True)
class Run(command.Run):
    """``fewstep generate --backbone trellis2``: TRELLIS's command with other networks."""

    models: Models
    roles: ClassVar[Mapping[str, str]] = {MESH: TEXTURE_DECODER}
    about_texts: ClassVar[str] = TEXTS

    def _choose(self) -> Any:
        return choose(self.models)

    def _needed(self, chosen: Chosen, formats: Sequence[str]) -> list[str]:
        return chosen.needed(decode=bool(command.decoded(formats)))

    def _check_encoder(self, spec: Any) -> None:
        check_image_conditioner(self.options.encoder or spec.encoder)

    def _generator(self, chosen: Any) -> Any:
        return Generator(chosen, self.options)


def export(models: Models, out: Path, console: Console, errors: Console, *, half: bool = False) -> None:
    """Write a pipeline folder with students in place of its flows, and say what it holds.

    Raises:
        FewstepError: bad input; nothing is written then.
    """
    with told(errors):
        chosen = choose(models)
        announce(chosen, console, errors)
        assert isinstance(chosen.pipeline, Pipeline)  # there is no mesh
        save_pipeline(out, chosen.pipeline, chosen.students, chosen.recipes, kind=chosen.kind, half=half)
    use = shell("fewstep", "generate", "--backbone", "trellis2", "--teacher", out)
    say(console, f"wrote {out}: {use}, or TRELLIS.2's own from_pretrained({str(out)!r})")
