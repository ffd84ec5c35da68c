"""Files of strangers: what is no regular file is refused at once, JSON ends in one line."""

import json
import os
import sys
from pathlib import Path

import pytest

from hpm_video.runtime.reading import MAX_DEPTH, open_regular, parse_json, read_json, read_text

DEEP = "[" * 200_000
LONG = "1" * 5000


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    place = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    if kind == "pipe":
        os.mkfifo(place)
    link = tmp_path / "link"
    link.symlink_to(place)
    for path in (place, link):
        for read in (open_regular, read_text, read_json):
            with pytest.raises(ValueError, match=rf"must be a regular file, but is a {kind}"):
                read(path)


def test_a_file_is_read_with_line_ends_as_python_has_them(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\r\ntwo\rthree\n\xff")
    assert read_text(tmp_path / "a", errors="surrogateescape") == "one\ntwo\nthree\n\udcff"
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a has 16 bytes: must have at most 15"):
        read_text(tmp_path / "a", most=15)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DEEP, "nested"),
        ("[" * 500 + "]" * 500, "nested more than 100 levels deep"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested more than 100 levels deep"),
        (f'{{"step": {LONG}}}', "digits"),
        ("[1, 2", "delimiter"),
    ],
)
def test_json_that_python_cannot_read_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    for given in (text, text.encode()):
        with pytest.raises(json.JSONDecodeError, match=words) as caught:
            parse_json(given)
        assert caught.traceback[-1].frame.f_globals["__name__"] == "hpm_video.runtime.reading"
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json:1: is not JSON: .*{words}") as error:
        read_json(tmp_path / "a.json")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_json_as_deep_as_allowed_and_with_many_brackets_in_texts() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(text)) == text
    assert parse_json(json.dumps(["[{" * 500] * 300)) == ["[{" * 500] * 300
    assert parse_json("1" * sys.get_int_max_str_digits()) > 0
