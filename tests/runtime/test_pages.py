"""Pages: all of them are templates, and nothing that is put into one is HTML."""

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import hpm_video
from hpm_video.runtime.pages import page

ROOT = Path(hpm_video.__file__).parent


def test_values_are_escaped_and_on_one_line() -> None:
    nasty = "<b>{{ title }}</b>\n\udcff&'\""
    values = {"minutes": 1.0, "rows": [(nasty, 1, None)], "curves": nasty, "pictures": {}}
    text = page("hpm_video.cli", "demo.html", title=nasty, **values)
    text.encode()  # is valid Unicode
    escaped = "&lt;b&gt;{{ title }}&lt;/b&gt;\\n\\udcff&amp;&#39;&#34;"
    assert text.count(escaped) == 4 and "<b>" not in text
    assert f"<td>{escaped}</td><td>1</td><td>None</td>" in text


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="rows"):
        page("hpm_video.cli", "demo.html", title="a", minutes=1.0)


def test_html_stands_in_templates_which_share_one_frame() -> None:
    tag = re.compile(
        r"</?(?:html|table|t[dr]|p|div|h\d|span|figure|svg|img|li|details|script)\b[^>]*>"
    )
    for path in ROOT.rglob("*.py"):
        assert not tag.search(path.read_text(encoding="utf-8")), path
    framed = [path for path in ROOT.rglob("*.html") if "<!doctype" in path.read_text("utf-8")]
    assert framed == [ROOT / "runtime" / "assets" / "base.html"]
