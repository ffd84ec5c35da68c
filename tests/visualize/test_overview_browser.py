"""The pages over a training and a data set, in a real browser."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpm_video.cli.main import main
from hpm_video.visualize.dataset import visualize_list
from hpm_video.visualize.training import visualize_training

pytestmark = pytest.mark.browser
_TELL = """const finish = arguments[0], told = {};
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
(async () => { %s })().then(() => finish(told), (error) => finish({ error: String(error) }));"""


def ask(browser: Any, page: Path, script: str, *, scheme: str = "light") -> dict[str, Any]:
    """Run a script in a page, which writes to ``told``; nothing in the page may go wrong."""
    scheme_is = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_is)
    browser.get(page.as_uri())
    told: dict[str, Any] = browser.execute_async_script(_TELL % script)
    assert "error" not in told, told["error"]
    assert browser.get_log("browser") == []
    return told


@pytest.fixture(scope="module")
def videos(toy: Path) -> list[str]:
    lines = toy.read_text().splitlines()[1:3]
    return [str(toy.parent / line.split(",")[0]) for line in lines]


def test_training_page(
    browser: Any, videos: list[str], tmp_path: Path, pretrain_arguments: Callable[..., list[str]]
) -> None:
    often = ("run.keep_checkpoints=0", "run.checkpoint_every_minutes=0")
    assert main(pretrain_arguments(tmp_path / "run", *often)) == 0
    page, history = visualize_training(
        tmp_path / "run", videos, tmp_path, num_checkpoints=4, num_masks=2, device="cpu"
    )
    told = ask(browser, page, """
      while (document.documentElement.dataset.ready !== "true") await pause(20);
      const input = (id, value) => { const one = document.getElementById(id); one.value = value;
        one.dispatchEvent(new Event("input")) };
      const canvas = document.querySelector("#clip1 canvas");
      const picture = () => canvas.toDataURL();
      const text = (where) => document.querySelector(where).textContent;
      const playing = picture();
      while (picture() === playing) await pause(20); // it plays, or the time for scripts is over
      document.getElementById("play").click();
      input("frame", 2); told.frame = picture();
      told.same = picture() === told.frame;
      const seen = new Set();
      for (const layer of ["predicted", "measured", "left", "none"]) {
        input("layer", layer); seen.add(picture());
      }
      told.layers = seen.size;
      input("layer", "measured"); const last = picture();
      input("scale", "value"); told.scale = picture() !== last;
      input("opacity", 0); const bare = picture();
      input("layer", "none"); told.opacity = picture() === bare;
      input("layer", "measured"); input("opacity", 100);
      input("moment", 3); told.numbers = text("#clip1 .numbers"); told.step = text("#step");
      told.easy = text("#clip1 .easy li"); told.hard = text("#clip1 .hard li");
      // The place of the pointer: row 2, column 1 of 4 x 4
      const box = canvas.getBoundingClientRect();
      canvas.dispatchEvent(new PointerEvent("pointermove", {
        clientX: box.left + box.width * 0.3, clientY: box.top + box.height * 0.6 }));
      told.hover = text("#clip1 .told");
      canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
      canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp" }));
      told.key = text("#clip1 .told");
      told.curve = document.querySelectorAll("#clip1 .of-tube polyline").length;
      // The colour of a tube by value: of frame 2, hence of the second time step
      input("scale", "rank"); input("frame", 2);
      told.coloured = picture();
      input("moment", 0); told.first = text("#step");
      document.getElementById("train").click();
      while (text("#step") === told.first) await pause(20);
      told.trained = text("#step");
      const all = [...document.querySelectorAll("input, select, button, canvas, svg")];
      const named = (one) => one.labels?.length || one.textContent.trim() || one.ariaLabel;
      told.unnamed = all.filter((one) => !named(one)).length;
      const cursor = document.querySelector(".curve .cursor");
      told.cursor = cursor.getAttribute("visibility");
    """)  # fmt: skip
    assert told["same"] and told["scale"] and told["opacity"]
    assert told["layers"] == 4 and told["unnamed"] == 0 and told["cursor"] == "visible"
    assert told["step"] == "8" and told["first"] == "0 (untrained)" and told["trained"] == "1"
    moments = history.moments
    clip = moments[3].measured[1].reshape(2, 4, 4)
    assert f"measured loss {clip.mean():.3g}"[:18] in told["numbers"]
    tubes, first = clip.mean(axis=0), moments[0].measured[1].reshape(2, 4, 4).mean(axis=0)
    left = tubes / first
    for words, at in ((told["easy"], left.argmin()), (told["hard"], left.argmax())):
        row, column = divmod(int(at), 4)
        place, share = words.split(": ")
        assert place == f"row {row + 1}, column {column + 1}"
        assert float(share.removesuffix("%")) == pytest.approx(100 * left[row, column], rel=0.05)
    for words, row, column in ((told["hover"], 2, 1), (told["key"], 1, 2)):
        assert words.startswith(f"Tube in row {row + 1}, column {column + 1}, mean over time:")
        value = float(re.findall(r"measured ([\d.e-]+)", words)[0])
        assert value == pytest.approx(tubes[row, column], rel=6e-3)
    assert told["curve"] == 2
    # At full opacity a tube has the colour of its rank among all tokens of the clip
    ranks = clip.ravel().argsort().argsort()[16:] / 31
    image = Image.open(io.BytesIO(base64.b64decode(told["coloured"].split(",")[1]))).convert("RGB")
    cell = image.width // 4
    corners = np.asarray(image)[cell // 5 :: cell, cell * 9 // 10 :: cell]  # of 4 x 4 tubes
    brightness = corners.astype(int).sum(axis=-1).ravel()
    assert np.array_equal(brightness.argsort(), ranks.argsort())


def test_dataset_page_light_and_dark(
    browser: Any, pretrained: Path, toy: Path, tmp_path: Path
) -> None:
    page, found = visualize_list(
        pretrained, [toy], tmp_path, num_workers=0, num_shown=2, num_masks=2, device="cpu"
    )
    assert found is not None
    script = """
      const kinds = () => [...document.querySelectorAll("[data-kind]")].filter(
        (one) => !one.hidden).map((one) => one.dataset.kind);
      told.before = kinds();
      document.querySelector("#shown input[value=predicted]").click();
      told.after = kinds();
      const table = document.querySelector("table.sortable");
      const words = () => [...table.rows].slice(1).map((row) => row.cells[2].textContent);
      told.loss = words();
      table.rows[0].cells[2].firstChild.click(); told.down = words();
      table.rows[0].cells[2].firstChild.click(); told.up = words();
      told.sort = table.rows[0].cells[2].ariaSort;
      told.loaded = [...document.images].every((image) => image.naturalWidth > 0);
      told.wide = document.documentElement.scrollWidth <= innerWidth;
      const shown = getComputedStyle(document.body);
      told.colours = [shown.color, shown.backgroundColor];
    """
    light = ask(browser, page, script)
    assert light["before"] == ["measured"] * 4 and light["after"] == ["predicted"] * 4
    numbers = [float(word) for word in light["loss"]]
    assert [float(word) for word in light["down"]] == sorted(numbers, reverse=True)
    assert [float(word) for word in light["up"]] == sorted(numbers)
    assert light["sort"] == "ascending" and light["loaded"] and light["wide"]
    dark = ask(browser, page, script, scheme="dark")
    ink, paper = (sum(map(int, re.findall(r"\d+", words))) for words in dark["colours"])
    assert ink > paper
    ink, paper = (sum(map(int, re.findall(r"\d+", words))) for words in light["colours"])
    assert ink < paper
