"""What ``fewstep export`` does."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fewstep_trellis.conditioning.factory import DINO
from fewstep_trellis.generate.options import Models
from fewstep_trellis.generate.plan import choose
from fewstep_trellis.generate.report import say, told
from fewstep_trellis.pipeline.export import save_pipeline


def export(models: Models, out: Path, console: Console, errors: Console, *, half: bool = False) -> None:
    """Write a pipeline folder with students in place of its flows, and say what it holds.

    Raises:
        FewstepError: bad input; nothing is written then.
    """
    with told(errors):
        chosen = choose(models)
        for line in chosen.lines():
            say(console, line)
        for line in chosen.warnings:
            say(errors, f"warning: {line}")
        save_pipeline(out, chosen.pipeline, chosen.students, chosen.recipes, half=half)
        spec = chosen.pipeline.spec
        if spec.kind == "image" and spec.encoder not in DINO:
            say(
                errors,
                f"warning: TRELLIS itself has no image encoder {spec.encoder!r}; fewstep generate takes the folder",
            )
    say(console, f"wrote {out}: fewstep generate --teacher {out}, or TRELLIS's own from_pretrained({str(out)!r})")
