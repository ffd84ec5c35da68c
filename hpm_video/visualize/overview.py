"""The frame of the pages over a training and over a data set: they need no other file."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import Any

from hpm_video.data.page import text


def overview_page(title: str, *parts: str, script: str, data: Any = None) -> str:
    """A page of parts that are HTML already, under its title, which is plain text.

    ``script``: its file in assets; it finds ``data`` as JSON in the element of that id.
    """
    body = "\n".join(part for part in parts if part)
    if data is not None:
        # Of all that JSON may hold only "<" could end the element
        given = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        body += f'\n<script type="application/json" id="data">{given}</script>'
    return _PAGE.format(
        title=text(title), style=_asset("overview.css"), body=body, script=_asset(script)
    )


def text_block(words: str) -> str:
    """Several lines as text of a page."""
    return html.escape(words)


def _asset(name: str) -> str:
    return (files("hpm_video.visualize") / "assets" / name).read_text(encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="generator" content="hpm-video"><meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
<h1>{title}</h1>
{body}
<script>
{script}</script>
"""
