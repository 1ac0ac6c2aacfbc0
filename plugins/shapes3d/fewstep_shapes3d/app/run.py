"""What ``fewstep app`` does and prints."""

from __future__ import annotations

from rich.console import Console

from fewstep.console import say
from fewstep_shapes3d.app.maker import Maker
from fewstep_shapes3d.app.server import Server
from fewstep_shapes3d.browser import open_page


def run(maker: Maker, host: str, port: int, console: Console, show: bool = True) -> None:
    """Serve the page until Ctrl-C.

    Args:
        maker: makes objects.
        host: to listen on.
        port: 0 is any free one.
        console: for progress.
        show: open the page in the browser.

    Raises:
        FewstepError: a host or port that cannot be listened on.
    """
    server = Server(maker, host, port, console)
    try:
        reach = "" if server.local else "; everybody on the network can use it"
        say(console, f"{maker.title}\npage: {server.url} (Ctrl-C ends it{reach})")
        if show:
            open_page(server.url)
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say(console, "stopped")
    finally:
        server.close()
