"""The frame of the pages over a training and over a data set: they need no other file."""

from __future__ import annotations

from typing import Any

from hpm_video.data.page import text
from hpm_video.visualize.page import as_json, asset, css, fill_page


def overview_page(title: str, *parts: str, script: str, data: Any = None) -> str:
    """A page of parts that are HTML already, under its title, which is plain text.

    ``script``: its file in assets; it finds ``data`` as JSON in the element of that id.
    """
    given = "" if data is None else as_json(data)
    return fill_page(
        {
            "title": text(title),
            "css": css("overview"),
            "body": "\n".join(part for part in parts if part),
            "data": given and f'<script type="application/json" id="data">{given}</script>',
            "script": asset("theme.js") + asset(script),
        },
        "overview.html",
    )
