"""The demo's first page: a clip, and what a small model that comes with the package makes of it."""

import os
import sys
import webbrowser
from pathlib import Path

from hpm_video.config.values import Device

# Both by tools/make_demo_model.py; the model has never seen the clip
ASSETS = Path(__file__).with_name("assets")
MODEL, CLIP = ASSETS / "toy_model.safetensors", ASSETS / "toy_clip.mp4"


def show_clip(output_dir: str | Path, *, device: Device = "auto") -> Path:
    """Write the interactive page of the shipped clip as the shipped model sees it; returns it."""
    from hpm_video.visualize import visualize

    visualize(MODEL, [CLIP], output_dir, formats=(), device=device)
    return Path(output_dir) / f"{CLIP.stem}.html"


def open_page(page: Path) -> None:
    """Open a page in a browser, where a person sits at a desktop."""
    has_desktop = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if has_desktop and sys.stdout.isatty():
        webbrowser.open(page.absolute().as_uri())
