"""The prose of README.md, CONTRIBUTING.md and docs/: short sentences, and no phrase that had to be
read twice. ``python tests/test_prose.py FILE…`` lists what to rewrite."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_WORDS = 30
PHRASES = (
    "One code path has these forms",
    "that mining adds to it could not be seen",
    "of clips so small a tenth",
    "is told apart",
    "are told apart",
    "are not told apart",
    "to the base has 0 in its interval",
    "Wishes of any process",
    "as others like it",
    "the newest so many",
    "longer than this no process waits",
    "so many GPUs has a node",
    "Something that the main process alone works on",
    "be it for hours",
    "a process of its own was killed",
    "as where memory runs out",
    "It is there to be used, not to be continued",
    "By itself that is no verdict",
)


def _plain(inline: Token) -> str:
    """The words as a reader sees them; code counts as one word."""
    said = {"text": lambda part: part.content, "code_inline": lambda _: "CODE"}
    said |= {"softbreak": lambda _: " ", "hardbreak": lambda _: " "}
    return "".join(said[part.type](part) for part in inline.children or () if part.type in said)


def _texts(page: str) -> Iterator[tuple[int, str, bool]]:
    """(line, text, whether it is in a table) of paragraphs, headings, list items and cells."""
    depth = 0
    for token in MarkdownIt("commonmark").enable("table").parse(page):
        depth += token.nesting if token.type.startswith("table") else 0
        if token.type == "inline":
            assert token.map is not None
            yield token.map[0] + 1, _plain(token), depth > 0


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z0-9])", text)


def faults(page: str) -> list[str]:
    """What is to be rewritten in a Markdown text, one line each."""
    found = []
    for line, text, in_table in _texts(page):
        for sentence in [] if in_table else _sentences(text):
            words = len(re.findall(r"\S*\w\S*", sentence))
            if words > MOST_WORDS:
                found.append(f"{line}: {words} words, must be at most {MOST_WORDS}: {sentence}")
        for phrase in PHRASES:
            if phrase.lower() in text.lower():
                found.append(f"{line}: say it plainly: {phrase}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_sentences_are_short_and_plain(page: Path) -> None:
    found = faults(page.read_text(encoding="utf-8"))
    assert not found, "\n".join([page.name, *found])


def test_what_counts_as_a_sentence() -> None:
    long = "word " * 31
    assert len(faults(f"{long}.")) == 1
    assert len(faults(f"- short\n- {long}.\n- short")) == 1
    assert len(faults(f"see [{long}](page.md).")) == 1
    for fine in (
        f"| a | b |\n|---|---|\n| {long}. | c |",
        f"```\n{long}\n```",
        f"Type `{long}` now.",
        f"{'word ' * 29}end. {'Word ' * 29}end.",
        "- word\n" * 31,
    ):
        assert not faults(fine), fine
    assert faults("no form is\n*told apart*")
    assert faults("| no form is told apart |\n|---|\n| a |")


if __name__ == "__main__":
    for name in sys.argv[1:] or map(str, PAGES):
        for fault in faults(Path(name).read_text(encoding="utf-8")):
            print(f"{name}:{fault}")
