"""Parts of our pages of HTML, which need no other file. What is not ours to write is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from hpm_video.runtime.files import printable

Frames = npt.NDArray[np.uint8]


_MAX_OPEN = 30  # rows of a table that is shown before one asks for it


def page(title: str, *parts: str) -> str:
    """A page of parts that are HTML already, under its title, which is plain text."""
    body = "\n".join(part for part in parts if part)
    return _PAGE.format(title=text(title), body=body)


def text(words: object) -> str:
    """Anything as text of a page."""
    return html.escape(printable(str(words)))


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table that folds away, of rows of anything; nothing where there are none."""
    cells = ["".join(f"<td>{text(value)}" for value in row) for row in rows]
    if not cells:
        return ""
    lines = "\n".join(f"<tr>{line}" for line in cells)
    is_open = " open" if len(cells) <= _MAX_OPEN else ""
    return (
        f"<details{is_open}><summary>{title} ({len(cells):,})</summary>"
        f"<table><tr>{''.join(f'<th>{name}' for name in head)}\n{lines}</table></details>"
    )


def picture(data: bytes, *, alt: str, kind: str = "png") -> str:
    """A picture, from the bytes of its file."""
    source = base64.b64encode(data).decode()
    return f'<img alt="{text(alt)}" src="data:image/{kind};base64,{source}">'


def png(drawn: Figure, *, dpi: int = 110) -> bytes:
    """The file of a figure."""
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="generator" content="hpm-video">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }}
img {{ max-width: 100%; height: auto }} h1, td {{ overflow-wrap: anywhere }}
h2, summary {{ font-size: 1em; font-weight: bold; margin: 1em 0 .3em }}
td, th {{ padding-right: 1em; text-align: left; vertical-align: top }}
.cells {{ overflow-x: auto }} .cells td, .cells th {{ padding: .1em .4em; white-space: nowrap }}
.cells td {{ text-align: right; border: 1px solid #ddd }}
</style>
<h1>{title}</h1>
{body}
"""
