"""Make the README's picture of the viewer, from the page of the demo:

    hpm-video demo
    python docs/viewer.py outputs/demo/clip/toy_clip.html

Chromium steps through the video with the page's own time control and captures every frame.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

OUTPUT = Path(__file__).parent / "images" / "viewer.webp"
SHOW = """
const play = document.getElementById("play");
if (play.getAttribute("aria-pressed") === "true") play.click();
const time = document.getElementById("time");
time.value = arguments[0];
time.dispatchEvent(new Event("input", {bubbles: true}));
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="page that hpm-video visualize wrote")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="default: %(default)s")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(1100, 630), metavar=("WIDTH", "HEIGHT"),
        help="visible part of the page, from its top left corner (default: 1100 630)",
    )  # fmt: skip
    parser.add_argument("--ms", type=int, default=180, help="time per frame (default: %(default)s)")
    arguments = parser.parse_args()
    pictures = photograph(arguments.page, *arguments.size)
    pictures[0].save(
        arguments.output, save_all=True, append_images=pictures[1:], duration=arguments.ms,
        loop=0, quality=60, method=6,
    )  # fmt: skip
    size = arguments.output.stat().st_size
    sys.stdout.write(f"{arguments.output}: {len(pictures)} frames, {size:,} bytes\n")


def photograph(page: Path, width: int, height: int) -> list[Image.Image]:
    """Capture every frame of a page's video as the page shows it."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise SystemExit("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(option)
    with webdriver.Chrome(options, Service(driver)) as browser:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        browser.get(page.resolve().as_uri())
        last = browser.execute_script("return Number(document.getElementById('time').max)")
        pictures = []
        for position in range(last + 1):
            browser.execute_script(SHOW, position)
            pictures.append(Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB"))
    return pictures


if __name__ == "__main__":
    main()
