"""Check pages in headless Chromium: light and dark, narrow and wide.

    python tools/check_pages.py OUT [PAGE ...] [--axe axe.min.js]

Without a PAGE it makes one of each kind from tiny runs, which takes minutes. It saves a screenshot
of each page and look in OUT. It reports console messages, pages wider than the window and, if given
axe-core's file, serious violations. Exit code 1 if there are any.
axe-core: `npm pack axe-core`, or axe/axe.min.js in the wheel of axe-core-python.
"""

import argparse
import base64
import csv
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from hpm_video.cli.demo import write_page
from hpm_video.cli.main import main as hpm_video
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.visualize import visualize

_AsWritten = argparse.RawDescriptionHelpFormatter
LOOKS = [(scheme, width) for scheme in ("light", "dark") for width in (1400, 400)]
_MOST_PIXELS = 3000  # maximum height of a screenshot
# Settings of tiny runs: for both jobs, and for pre-training
_TINY = (
    *("run.device=cpu", "run.precision=float32", "data.num_frames=4", "data.frame_stride=1"),
    *("data.crop_size=32", "data.batch_size=4", "data.num_workers=0", "model.width=32"),
    *("model.depth=2", "model.heads=2", "model.patch_size=8", "optim.warmup_epochs=0"),
    "optim.epochs=2",
)
_PRETRAIN = (
    *("run.picture_every=0", "model.decoder_width=32", "model.decoder_heads=2"),
    *("model.decoder_depth=1", "model.predictor_depth=1", "masking.hard_ratio_end=1.0"),
)
_SERIOUS = """const done = arguments[0];
axe.run().then((found) => done(found.violations
  .filter((one) => ["serious", "critical"].includes(one.impact))
  .map((one) => `${one.id}: ${one.nodes.length} x ${one.nodes[0].html.slice(0, 150)}`)))"""


def make_pages(folder: Path) -> Iterator[Path]:
    """Make one page of each kind, from tiny runs on toy videos."""

    def run(*words: object) -> None:
        if hpm_video([str(word) for word in words]) not in (0, 1):  # 1: a video is unreadable
            raise SystemExit(f"failed: {' '.join(map(str, words))}")

    listed = write_toy_videos(folder / "toy", num_videos=24, size=32, num_frames=12)
    with listed.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    videos = [str(listed.parent / row["path"]) for row in rows[:3]]
    (folder / "toy" / "broken.mp4").write_bytes(Path(videos[0]).read_bytes()[:300])
    odd = folder / "toy" / "several.csv"
    pairs = [(row["path"], int(row["label"])) for row in rows]
    lines_of = [f"{path},{label};{(label + 1) % 8}\n" for path, label in pairs]
    odd.write_text("".join(["path,label\n", *lines_of, "broken.mp4,1\n"]))
    empty = folder / "empty.yaml"
    empty.write_text("{}\n")
    pre, tune = ("pretrain", empty, *_TINY, *_PRETRAIN), ("finetune", empty, *_TINY)
    plain = ("loss.prediction=none", "masking.hard_ratio_end=0")
    several = f"data.manifest={odd}", "data.labels.separator=;"
    for name, words in {
        "mined": (*pre, f"data.manifest={listed}"),
        "plain": (*pre, f"data.manifest={listed}", *plain),
        "tuned": (*tune, f"data.manifest={listed}"),
        "several": (*tune, *several),
    }.items():
        run(*words, f"run.output_dir={folder / name}")
    broken = folder / "toy" / "broken.mp4"
    common = ("--formats", "--device", "cpu")
    run("visualize", folder / "mined", *videos, broken, "-o", folder / "pictures", *common)
    run("visualize", folder / "plain", videos[0], "-o", folder / "plain_pictures", *common)
    run("visualize", folder / "mined", *videos, "--through-training", "-o", folder / "training",
        "--device", "cpu")  # fmt: skip
    run("visualize", folder / "mined", "--manifest", listed, "-o", folder / "dataset",
        "--num-workers", 0, "--device", "cpu", "--num-shown", 3)  # fmt: skip
    for name, of in (("tuned", listed), ("several", odd)):
        run("evaluate", folder / name, "--manifest", of, "-o", folder / f"evaluation_{name}",
            "device=cpu", "num_workers=0")  # fmt: skip
    run("predict", folder / "tuned", videos[0], "--windows", 0.25, "-o", folder / "along",
        "device=cpu", "num_workers=0")  # fmt: skip
    run("data", "check", odd, "-o", folder / "checked.csv", "--page", folder / "check.html")
    _, results = visualize(folder / "mined", videos, folder / "demo" / "pictures", device="cpu")
    runs = dict.fromkeys(("pretrain", "finetune", "scratch"), folder / "mined")
    write_page(folder / "demo", [("top-1", "0.900", "chance .125")], runs, results, minutes=1)
    name = Path(videos[0]).stem
    for place in (
        "demo/index", "pictures/index", f"pictures/{name}", f"plain_pictures/{name}", "check",
        "training/training", "dataset/dataset", "evaluation_tuned/index",
        "evaluation_several/index", f"along/{name}",
    ):  # fmt: skip
        yield folder / f"{place}.html"


def look(browser: Any, page: Path, out: Path, axe: str | None) -> list[str]:
    """Faults of a page in each look; saves the screenshots."""
    wrong = []
    for scheme, width in LOOKS:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(page.absolute().as_uri())
        browser.execute_async_script("setTimeout(arguments[0], 1000)")
        found = [entry["message"] for entry in browser.get_log("browser")]
        wide = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
        found += [f"{wide} pixels wider than the window"] * (wide > 0)
        if axe is not None:
            browser.execute_script(axe)
            found += browser.execute_async_script(_SERIOUS)
        height = browser.execute_script("return document.documentElement.scrollHeight")
        size |= {"height": min(height, _MOST_PIXELS)}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        name = f"{page.parent.name}_{page.stem}_{width}_{scheme}.png"
        (out / name).write_bytes(base64.b64decode(taken["data"]))
        wrong += [f"{page} {width} {scheme}: {words}" for words in found]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_AsWritten)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for screenshots")
    parser.add_argument("pages", type=Path, nargs="*", metavar="PAGE", help="pages to check")
    parser.add_argument("--axe", type=Path, help="path of axe-core's axe.min.js")
    arguments = parser.parse_intermixed_args()
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        parser.error("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    arguments.out.mkdir(parents=True, exist_ok=True)
    pages = arguments.pages or list(make_pages(arguments.out / "pages"))
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    browser.set_script_timeout(120)
    axe = None if arguments.axe is None else arguments.axe.read_text(encoding="utf-8")
    try:
        wrong = [words for page in pages for words in look(browser, page, arguments.out, axe)]
    finally:
        browser.quit()
    print(*wrong, f"{len(pages)} pages, {len(LOOKS)} looks each: {len(wrong)} faults", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
