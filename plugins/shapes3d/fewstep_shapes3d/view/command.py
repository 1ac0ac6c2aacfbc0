"""``fewstep view`` as a command. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument

from fewstep.cli.options import DEVICE, home
from fewstep.console import Console, say
from fewstep_shapes3d.app.options import OPEN
from fewstep_shapes3d.browser import open_page


def view(
    result: Annotated[
        str, Argument(help="A .glb file, a folder of them or of such folders, the folder of a bench, or a run.")
    ],
    device: Annotated[str, DEVICE] = "auto",
    show: Annotated[bool, OPEN] = True,
) -> None:
    """Look at results: writes one HTML page with objects to rotate, beside their pictures and true objects."""
    from fewstep_shapes3d.view.page import page_of

    page = page_of(Path(home(result)), device)
    say(Console(), f"page: {page}")
    if show:
        open_page(page.resolve().as_uri())
