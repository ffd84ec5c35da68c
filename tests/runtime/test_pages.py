"""Pages: all of them are templates, and nothing that is put into one is HTML."""

import base64
import hashlib
import html
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

import hpm_video
from hpm_video.runtime.pages import _environment, cut, number, page, short, told_apart

ROOT = Path(hpm_video.__file__).parent


def test_values_are_escaped_and_on_one_line() -> None:
    nasty = "<b>{{ title }}</b>\n\udcff&'\""
    values = {
        "minutes": 1.0,
        "rows": [(nasty, 1, None)],
        "curves": [],
        "pictures": [(nasty, "", "", None, None)],
        "is_quick": False,
        "rule": "",
    }
    text = page("hpm_video.cli", "demo.html", title=nasty, **values)
    text.encode()  # is valid Unicode
    escaped = "&lt;b&gt;{{ title }}&lt;/b&gt;\\n\\udcff&amp;&#39;&#34;"
    assert text.count(escaped) == 4 and "<b>{{" not in text
    assert f"<dt>{escaped}</dt><dd><b>1</b><small>None</small></dd>" in text


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="rows"):
        page("hpm_video.cli", "demo.html", title="a", minutes=1.0, is_quick=False)


def test_html_stands_in_templates_which_share_one_frame() -> None:
    tag = re.compile(
        r"</?(?:html|table|t[dr]|p|div|h\d|span|figure|svg|img|li|details|script)\b[^>]*>"
    )
    for path in ROOT.rglob("*.py"):
        assert not tag.search(path.read_text(encoding="utf-8")), path
    framed = [path for path in ROOT.rglob("*.html") if "<!doctype" in path.read_text("utf-8")]
    assert framed == [ROOT / "runtime" / "assets" / "base.html"]


class _SaysItIsHtml:
    def __html__(self) -> str:
        return "<img src=x onerror=alert(1)>"

    def __str__(self) -> str:
        return "3"


def test_pages_say_short_names() -> None:
    assert short("/data/runs/one/checkpoints/last") == short("/data/runs/one/") == "one"
    assert short("/data/runs/one/checkpoints/step_00000100.pt") == "one/step_00000100.pt"
    assert short("a b.mp4") == "a b.mp4" and short("") == "" and short("/") == "/"


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    paths = ["/data/a/x/1.mp4", "/data/a/y/1.mp4", "/data/a/y/2.mp4"]
    assert list(told_apart(paths).values()) == ["x/1.mp4", "y/1.mp4", "y/2.mp4"]
    assert told_apart(paths[1:]) == {paths[1]: "1.mp4", paths[2]: "2.mp4"}
    assert told_apart([*paths, "/data/b/x/1.mp4"])[paths[0]] == "a/x/1.mp4"
    assert told_apart(["1.mp4", "/1.mp4"])["/1.mp4"] == "/1.mp4"
    assert told_apart([paths[0], paths[0]]) == {paths[0]: "1.mp4"} and told_apart([]) == {}


def test_long_names_that_differ_at_the_end_stay_apart() -> None:
    names = [f"{k} a rather long class name, the one with number {k}" for k in (1, 2)]
    first, second = map(cut, names)
    assert first != second and max(map(len, (first, second))) < 30
    assert first.startswith("1 a rather") and first.endswith("with number 1")
    assert cut("short") == "short"


def test_no_number_is_a_negative_zero() -> None:
    forms = (".2f", ".3f", ".0%", "g")
    assert [number(-0.0001, form) for form in forms] == ["0.00", "0.000", "0%", "-0.0001"]
    assert [number(-0.26, form) for form in forms] == ["-0.26", "-0.260", "-26%", "-0.26"]
    assert number(-0.0, "g") == "0" and number(-1000, ",") == "-1,000"


def test_no_value_may_say_that_it_is_html() -> None:
    values = {"minutes": 1.0, "rows": [(_SaysItIsHtml(), 1, 2)], "curves": [], "pictures": {}}
    text = page("hpm_video.cli", "demo.html", title="a", is_quick=False, rule="", **values)
    assert "<dt>3</dt>" in text and "onerror" not in text


def _policy(text: str) -> dict[str, list[str]]:
    found = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert found is not None
    rules = (rule.split() for rule in html.unescape(found[1]).split(";"))
    return {name: allowed for name, *allowed in rules}


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_every_page_allows_its_own_style_and_script_alone(tmp_path: Path) -> None:
    """Of templates as they are: what is in their blocks for values may be left out."""
    framed = [
        path
        for path in ROOT.rglob("assets/*.html")
        if '{% extends "base.html" %}' in path.read_text("utf-8")
    ]
    assert {path.name for path in framed} == {
        "demo.html", "check.html", "evaluation.html", "index.html", "video.html", "training.html",
        "along.html", "dataset.html", "several_labels.html",
    }  # fmt: skip
    for path in framed:
        package = f"hpm_video.{path.parent.parent.relative_to(ROOT).as_posix()}".replace("/", ".")
        environment = _environment(package)
        shell = environment.from_string(
            f'{{% extends "{path.name}" %}}{{% block body %}}{{% endblock %}}'
        )
        text = shell.render(title="a", data={"a": "</script><script>alert(1)</script>"})
        policy = _policy(text)
        styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
        scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        assert [policy["style-src"]] == [[_hash(style)] for style in styles], path
        expected = [_hash(script) for script in scripts] or ["'none'"]
        assert policy["script-src"] == expected and len(scripts) <= 1, path
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
        assert policy["img-src"] == ["data:"]
        assert text.count("</script>") == 1 + len(scripts)


def test_scripts_make_no_markup_of_texts() -> None:
    for path in [*ROOT.rglob("assets/*.js"), *ROOT.rglob("assets/*.html")]:
        text = path.read_text("utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text), path
        assert not re.search(r"<[^>%]*\son[a-z]+=", text), path


@pytest.mark.browser
def test_a_browser_runs_nothing_that_was_put_into_a_page(browser: Any, tmp_path: Path) -> None:
    """Where a value had found its way around the escaping."""
    values = {"minutes": 1, "rows": [], "curves": [], "pictures": [], "is_quick": True, "rule": ""}
    text = page("hpm_video.cli", "demo.html", title="a", **values)
    bad = (
        "<script>document.title = 'script'</script><style>h1 { display: none }</style>"
        '<img src="x" onerror="document.title = \'handler\'">'
        '<iframe src="data:text/html,x"></iframe>'
    )
    for name, added in (("good", ""), ("bad", bad)):
        file = tmp_path / f"{name}.html"
        file.write_text(text.replace("</html>", f"{added}</html>"), encoding="utf-8")
        browser.get(file.as_uri())
        assert browser.execute_script("return document.title") == "a"
        shown = "return getComputedStyle(document.querySelector('h1')).display"
        assert browser.execute_script(shown) == "block"
        said = browser.get_log("browser")
        assert bool(said) == bool(added), said
