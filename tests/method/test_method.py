"""docs/method.md: its pictures can be drawn and its settings are those that exist."""

import re
import runpy
from pathlib import Path

from hpm_video.config import PretrainConfig
from hpm_video.config.schema import describe_settings

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "method.md").read_text()


def test_scripts_draw_the_pictures_of_the_texts(tmp_path: Path) -> None:
    everything: set[str] = set()
    for script, name in (("figures.py", "method.md"), ("figures_finetune.py", "finetune.md")):
        runpy.run_path(str(DOCS / script))["draw"](tmp_path)
        drawn = {path.name for path in tmp_path.iterdir()} - everything
        assert drawn == set(re.findall(r"\]\(images/(\S+)\)", (DOCS / name).read_text()))
        everything |= drawn
    # Those of index.md and visualize.md are photographs of pages, those of the others are measured.
    for name in ("index.md", "visualize.md", "performance.md", "results.md"):
        everything |= set(re.findall(r"\]\(images/(\S+)\)", (DOCS / name).read_text()))
    assert everything == {path.name for path in (DOCS / "images").iterdir()}
    for path in (*tmp_path.iterdir(), *(DOCS / "images").iterdir()):
        assert path.read_bytes().startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF")), path.name
        assert path.stat().st_size < 300_000, path.name


def test_the_table_of_settings_has_their_defaults() -> None:
    """Of each row the names in the first column, later ones by their end, and all defaults."""
    table = TEXT.split("## Settings and papers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", table, re.M)
    defaults = {setting.key: setting.default for setting in describe_settings(PretrainConfig)}
    assert len(rows) > 10
    for names, values in rows:
        first, *others = re.findall(r"`(\S+?)`", names)
        keys = [first]
        for name in others:  # `.view` is of the same group, `_end` stands for the last word
            last = {".": r"\.[^.]+$", "_": r"_[^_]+$"}.get(name[0])
            keys.append(re.sub(last, name, first) if last else name)
        told = values.split(", ")
        assert len(told) == len(keys), names
        for key, value in zip(keys, told, strict=True):
            shown = {"whole clip": "null"}.get(value, value)
            assert _number(defaults[key]) == _number(shown), key


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
