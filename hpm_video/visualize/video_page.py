"""One page about one video: it needs no other file, and no network."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps

from hpm_video.runtime.pages import Frames, jpeg, packed, page, short
from hpm_video.visualize.geometry import owned
from hpm_video.visualize.hard_tubes import KINDS, HardTubes
from hpm_video.visualize.verdict import RULE, mean_of, verdict
from hpm_video.visualize.windows import View

# Above the maps beside the video: what is compared with the measured loss
_TITLES = {
    "predicted": "Predicted loss",
    "motion": "Frame differences",
    "measured": "Measured loss",
}


@dataclass(frozen=True)
class Film:
    """What a checkpoint finds hard in a video.

    windows: in order of time, and in each the crops in order, of one HardTubes each.
    fps: frames of the clips per second when shown at the video's own speed.
    video_fps: frames per second of the video, 0 if not known; num_frames: how many it holds.
    view: what of the video they are.
    """

    name: str
    windows: tuple[tuple[HardTubes, ...], ...]
    fps: float
    video_fps: float
    num_frames: int
    view: View = field(default_factory=View)

    @property
    def num_repeats(self) -> int:
        """How many frames of a clip that is longer than its video repeat the one before."""
        return int((np.diff(self.windows[-1][0].indices) == 0).sum())

    @property
    def spearman(self) -> float | None:
        """Mean over the clips of the correlation of predicted and measured losses, where known."""
        return mean_of([tubes.spearman for crops in self.windows for tubes in crops])

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
    """Who was asked: a checkpoint, by the name it was given, its step and settings as YAML; and
    the name of a classifier beside it."""

    checkpoint: str
    step: int
    settings: str
    num_masks: int
    classifier: str | None = None


def video_page(film: Film, asked: Asked) -> str:
    """The HTML page of a video."""
    return page(
        __package__,
        "video.html",
        title=short(film.name),
        film=film,
        first=film.windows[0][0],
        asked=asked,
        title_path=film.name,
        first_window=film.windows[0],
        spearman=film.spearman,
        found=verdict(film.spearman),
        rule=RULE,
        is_cut=film.view.whole_video and len(film.windows) == film.view.max_windows,
        heats=(255 * colormaps["inferno"](np.linspace(0, 1, 9))[:, :3]).round().astype(int),
        names=KINDS,
        titles=_TITLES,
        data=_data(film),
    )


def _data(film: Film) -> dict[str, Any]:
    first = film.windows[0][0]
    places = [tubes.place for tubes in film.windows[0]]
    timeline = film.timeline()
    seconds = [(int(film.windows[w][0].indices[frame]), film.video_fps) for w, frame in timeline]
    # Of which every clip has a map: one of key frames alone has no motion vectors
    clips = [tubes for crops in film.windows for tubes in crops]
    kinds = [kind for kind in first.kinds if all(kind in tubes.kinds for tubes in clips)]
    palette = np.round(255 * colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)
    return {
        "grid": [first.grid.time, first.grid.height, first.grid.width],
        "tubelet": len(first.indices) // first.grid.time,
        "tubeLength": first.tube_length,
        "masking": asdict(first.masking),
        "hardRatio": first.hard_ratio,
        "plain": first.predicted is None,
        "kinds": kinds,
        "scoredBy": first.scored_by if first.scored_by in kinds else kinds[0],
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
                "crops": [_crop(tubes, kinds) for tubes in crops],
            }
            for crops in film.windows
        ],
    }


def _crop(tubes: HardTubes, kinds: Sequence[str]) -> dict[str, Any]:
    def losses(values: npt.NDArray[np.float32]) -> dict[str, str]:
        return {"tokens": packed(values), "tubes": packed(tubes.per_tube(values))}

    def pictures(frames: Frames | None) -> Sequence[str] | None:
        return None if frames is None else [jpeg(frame, quality=85) for frame in frames]

    return {
        "scores": {kind: losses(tubes.kinds[kind]) for kind in kinds},
        "agreement": {k: _finite(value) for k, value in tubes.agreement.items() if k in kinds},
        "seen": packed(tubes.random_mask.astype(np.uint8)),
        "honest": pictures(tubes.honest),
        "flattering": pictures(tubes.flattering),
        "spearman": _finite(tubes.spearman),
        "rankAccuracy": _finite(tubes.rank_accuracy),
        "seenAs": tubes.seen_as,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
