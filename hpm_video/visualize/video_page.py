"""One page about one video: it needs no other file, and no network."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image

from hpm_video.runtime.pages import Frames, text
from hpm_video.visualize.geometry import owned
from hpm_video.visualize.scores import HardTubes

_SCRIPTS = ("masks", "data", "draw", "spacetime", "main", "controls")
PLAIN = """<p class="note">This checkpoint is a plain VideoMAE, without a loss predictor: there is
nothing predicted to show or to compare, and what is hard goes by the loss measured.</p>"""
_BOTH = """The honest form is made by the model alone; as it predicts patterns and neither
brightness nor contrast, those are the average of the visible patches. The form with true statistics
takes them from the hidden patches themselves, and flatters any model."""
_ONE = "This model predicts pixels as they are, so there is one form only, made by the model alone."
_LEGEND = '<span class="legend-predicted">▬ predicted</span>, '


@dataclass(frozen=True)
class Film:
    """What a checkpoint finds hard in a video.

    windows: in order of time, and in each the crops in order, of one HardTubes each.
    fps: frames of the clips per second when shown at the video's own speed.
    video_fps: frames per second of the video, 0 if not known; num_frames: how many it holds.
    note: what else is to be said of the clips, '' for nothing.
    """

    name: str
    windows: tuple[tuple[HardTubes, ...], ...]
    fps: float
    video_fps: float
    num_frames: int
    note: str = ""

    def timeline(self) -> list[tuple[int, int]]:
        """(window, frame in it), in order of time: each frame of the video once."""
        places: list[tuple[int, int]] = []
        shown = -1  # the last frame of the video so far
        for window, (tubes, *_) in enumerate(self.windows):
            for frame, index in enumerate(tubes.indices.tolist()):
                # What repeats the end of a video that is shorter than its clip is kept
                if index > shown or len(self.windows) == 1:
                    places.append((window, frame))
                    shown = index
        return places


@dataclass(frozen=True)
class Asked:
    """Who was asked: a checkpoint, by the name it was given, its step and settings as YAML."""

    checkpoint: str
    step: int
    settings: str
    num_masks: int


def video_page(film: Film, asked: Asked) -> str:
    """The HTML page of a video."""
    first = film.windows[0][0]
    plain = first.predicted is None
    note = f'<p class="note">{text(film.note)}</p>' if film.note else ""
    about = (
        f"What {asked.checkpoint} (step {asked.step}) finds hard in {film.name}: "
        f"{len(film.windows)} {'clip' if len(film.windows) == 1 else 'clips in a row'} of "
        f"{len(first.indices)} frames, {first.grid}"
    )
    body = fill_page(
        {
            "about": text(about),
            "notes": note + (PLAIN if plain else ""),
            "gradient": gradient(),
            "legend": ("" if plain else _LEGEND)
            + '<span class="legend-measured">╍ measured</span>',
            "num_masks": str(asked.num_masks),
            "forms": _ONE if first.flattering is None else _BOTH,
            "step": str(asked.step),
            "settings": html.escape(asked.settings),
        },
        "page.html",
    )
    scripts = "\n".join(asset(f"{name}.js") for name in _SCRIPTS)
    return framed(Path(film.name).name, body, style="page", script=scripts, data=_data(film))


def framed(title: str, body: str, *, style: str, script: str, data: Any = None) -> str:
    """A page that needs no other file: HTML under a title, which is plain text.

    ``style``: its CSS file in assets, beside what all pages share. ``script`` finds ``data``, as
    JSON, in the element of that id.
    """
    given = "" if data is None else as_json(data)
    return fill_page(
        {
            "title": text(title),
            "css": css(style),
            "body": body,
            "data": given and f'<script type="application/json" id="data">{given}</script>',
            "script": script,
        },
        "frame.html",
    )


def fill_page(parts: Mapping[str, str], template: str) -> str:
    """A template with its ``{{parts}}``, which are HTML already."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], asset(template))


def asset(name: str) -> str:
    """The text of a file that comes with the package."""
    return (resources.files("hpm_video.visualize") / "assets" / name).read_text(encoding="utf-8")


def css(name: str) -> str:
    """The style of a page: what all of ours share, and its own."""
    return asset("base.css") + asset(f"{name}.css")


def as_json(value: Any) -> str:
    """JSON that may stand inside of a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def gradient() -> str:
    """The colours of the heat, from easiest to hardest, for CSS."""
    return ", ".join(
        f"rgb({', '.join(str(round(255 * part)) for part in colormaps['inferno'](at)[:3])})"
        for at in np.linspace(0, 1, 9)
    )


def jpeg(frame: Frames, *, quality: int) -> str:
    """A frame (H, W, 3) as the address of a picture."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="jpeg", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _data(film: Film) -> dict[str, Any]:
    first = film.windows[0][0]
    places = [tubes.place for tubes in film.windows[0]]
    timeline = film.timeline()
    seconds = [(int(film.windows[w][0].indices[frame]), film.video_fps) for w, frame in timeline]
    palette = np.round(255 * colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)
    return {
        "grid": [first.grid.time, first.grid.height, first.grid.width],
        "tubelet": len(first.indices) // first.grid.time,
        "tubeLength": first.tube_length,
        "maskRatio": first.mask_ratio,
        "hardRatio": first.hard_ratio,
        "plain": first.predicted is None,
        "fps": film.fps,
        "numFrames": film.num_frames,
        "shown": list(first.frames.shape[1:3]),
        "places": places,
        "owned": owned(places),
        "timeline": timeline,
        "times": [[index, index / fps if fps > 0 else None] for index, fps in seconds],
        "palette": packed(palette),
        "windows": [
            {
                "frames": [jpeg(frame, quality=85) for frame in crops[0].frames],
                "crops": [_crop(tubes) for tubes in crops],
            }
            for crops in film.windows
        ],
    }


def _crop(tubes: HardTubes) -> dict[str, Any]:
    def losses(values: npt.NDArray[np.float32] | None) -> dict[str, str] | None:
        if values is None:
            return None
        return {"tokens": packed(values), "tubes": packed(tubes.per_tube(values))}

    def pictures(frames: Frames | None) -> Sequence[str] | None:
        return None if frames is None else [jpeg(frame, quality=85) for frame in frames]

    return {
        "predicted": losses(tubes.predicted),
        "measured": losses(tubes.measured),
        "seen": packed(tubes.random_mask.astype(np.uint8)),
        "honest": pictures(tubes.honest),
        "flattering": pictures(tubes.flattering),
        "spearman": _finite(tubes.spearman),
        "rankAccuracy": _finite(tubes.rank_accuracy),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def packed(values: npt.NDArray[Any]) -> str:
    """The bytes of numbers, little ones first, as base64."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode()
