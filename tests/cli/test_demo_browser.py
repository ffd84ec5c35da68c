"""The demo's page in a real browser: it leads to the viewer's pages, from a folder on disk."""

from pathlib import Path
from typing import Any

import pytest

from hpm_video.cli.demo import write_page
from hpm_video.visualize import visualize

pytestmark = pytest.mark.browser


def test_the_page_leads_to_interactive_pages(
    browser: Any, pretrained: Path, toy: Path, tmp_path: Path
) -> None:
    videos = [str(toy.parent / line.split(",")[0]) for line in toy.read_text().splitlines()[1:3]]
    folder = tmp_path / "the demo"  # names of folders hold any letter
    _, results = visualize(pretrained, videos, folder / "pictures", num_masks=1, device="cpu")
    runs = dict.fromkeys(("pretrain", "finetune", "scratch"), pretrained)
    write_page(folder, [("top-1", "0.9", "chance .125")], runs, results, minutes=1)
    browser.get((folder / "index.html").as_uri())
    links = "return [...document.querySelectorAll('a')].map((link) => link.href)"
    expected = [(folder / "pictures" / "index.html").as_uri()]  # of what may be there, this is
    for video in videos:
        expected += [(folder / "pictures" / f"{Path(video).stem}.html").as_uri()]
    assert browser.execute_script(links) == expected
    loaded = "return [...document.images].every((image) => image.naturalWidth > 0)"
    assert browser.execute_script(loaded)

    browser.execute_script("document.querySelector('a > img').click()")
    assert browser.current_url == expected[1]
    assert browser.execute_script("return document.querySelectorAll('canvas').length") > 0
    browser.back()
    browser.execute_script("document.querySelector('a').click()")
    assert browser.current_url == expected[0]
    listed = browser.execute_script(links)
    assert sorted(listed) == sorted(set(expected[1:]))
    assert browser.get_log("browser") == []
