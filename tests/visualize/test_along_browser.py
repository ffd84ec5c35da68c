"""The page of classes along a video, in a real browser."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_overview_browser import ask

from hpm_video.cli.main import main
from hpm_video.evaluate.along import Along
from hpm_video.visualize.along_videos import video_page

pytestmark = pytest.mark.browser


def test_scores_follow_the_playing_video(
    browser: Any, toy: Path, tmp_path: Path, finetune_arguments: Callable[..., list[str]]
) -> None:
    assert main(finetune_arguments(tmp_path / "run", "optim.epochs=1")) == 0
    video = next((toy.parent / "videos").rglob("*.mp4"))
    words = ["--windows", "0.25", "-o", str(tmp_path / "out"), "device=cpu", "num_workers=0"]
    assert main(["predict", str(tmp_path / "run"), str(video), *words]) == 0
    told = ask(
        browser,
        tmp_path / "out" / f"{video.stem}.html",
        """
      while (document.documentElement.dataset.ready !== "true") await pause(20);
      const find = (id) => document.getElementById(id);
      const cells = () => [...values].map((cell) => Number(cell.textContent));
      const input = (value) => { find("time").value = value;
        find("time").dispatchEvent(new Event("input")) };
      told.data = data;
      told.curves = document.querySelectorAll("polyline").length;
      const state = () => ({ picture: picture.src, cells: cells(),
        x: find("cursor").getAttribute("d"), when: find("when").textContent });
      input(0); told.first = state();
      input(99); told.last = state();
      document.querySelector("[data-time]").click(); told.clicked = find("when").textContent;
      find("play").click();
      const start = Number(find("time").value);
      while (Number(find("time").value) < start + 0.3) await pause(20);
      told.playing = picture.src !== told.first.picture;
      while (find("play").textContent === "Pause") await pause(20); // it ends with the video
      told.end = Number(find("time").value);
    """,
    )
    data = told["data"]
    assert told["curves"] == len(data["scores"]) == 6
    assert told["first"]["picture"] == data["pictures"][0] != told["last"]["picture"]
    assert told["last"]["picture"] == data["pictures"][-1]
    assert told["first"]["x"].startswith("M0 ")
    assert told["first"]["cells"] == [scores[0] for scores in data["scores"]]
    assert told["last"]["cells"] == [scores[-1] for scores in data["scores"]]
    assert (told["clicked"], told["last"]["when"]) == ("0.00 s", "1.00 s")
    assert told["playing"] and told["end"] == data["end"] == 1


def test_names_without_a_blank_leave_the_page_as_wide_as_the_window(
    browser: Any, tmp_path: Path
) -> None:
    names = tuple(letter * 120 for letter in "abc")
    scores, start = np.eye(3, dtype=np.float32), np.arange(3.0)
    loaded: Any = SimpleNamespace(classes=names, thresholds=None, about={"checkpoint": "r" * 120})
    file = tmp_path / "a.html"
    file.write_text(video_page(Along("v" * 120, start, start + 1, scores, ()), loaded))
    for width in (400, 1400):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(file.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
