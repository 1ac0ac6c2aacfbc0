"""Options of ``fewstep app`` and ``fewstep view``. Imports no torch."""

from __future__ import annotations

from typer import Option

from fewstep.cli.options import whole

HOST = Option(help="Address to listen on; 0.0.0.0: everybody on the network can use the page.")
PORT = whole("--port", "Port to listen on; 0: any free one.", 0, 65535)
OPEN = Option("--open/--no-open", help="Open the page in the browser.")
