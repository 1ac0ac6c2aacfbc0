"""Opening a page in the user's browser, where there is one."""

from __future__ import annotations

import os
import sys
import webbrowser


def open_page(url: str) -> bool:
    """Open a page; returns whether a browser was asked to. Over ssh, in a container or on a server none is: the text
    browser that Python would take there would cover what the command prints."""
    windows = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    return windows and webbrowser.open(url)
