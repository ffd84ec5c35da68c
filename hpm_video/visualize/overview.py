"""The pages over a training and over a data set: parts under a title."""

from __future__ import annotations

from typing import Any

from hpm_video.visualize.video_page import asset, framed


def overview_page(title: str, *parts: str, script: str, data: Any = None) -> str:
    """A page of parts that are HTML already, under its title, which is plain text.

    ``script``: its file in assets; it finds ``data`` as JSON in the element of that id.
    """
    body = "\n".join(part for part in parts if part)
    scripts = asset("theme.js") + asset(script)
    return framed(title, body, style="overview", script=scripts, data=data)
