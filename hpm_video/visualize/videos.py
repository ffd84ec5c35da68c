"""Pages, pictures and films of videos, as a pre-training checkpoint sees them."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import numpy as np

from hpm_video.config.limits import at_least
from hpm_video.config.settings import config_to_yaml
from hpm_video.config.values import PictureFormat, values_of
from hpm_video.data.video.frame_indices import Indices
from hpm_video.data.video.frames import VideoReadError
from hpm_video.evaluate.pretrained import Pretrained, load_pretrained
from hpm_video.runtime.distributed import join_world
from hpm_video.runtime.files import (
    OURS,
    check_can_be_folder,
    check_is_ours,
    make_folder,
    printable,
    whole_file,
    write_atomically,
)
from hpm_video.runtime.pages import text
from hpm_video.visualize.films import film_frames, write_gif, write_mp4
from hpm_video.visualize.picture import picture
from hpm_video.visualize.reading import View, read_facts, read_window, window_indices
from hpm_video.visualize.scores import NUM_MASKS, ask, hard_ratio_of
from hpm_video.visualize.video_page import PLAIN, Asked, Film, css, fill_page, jpeg, video_page

FORMATS = values_of(PictureFormat)  # beside the page
MOST_GIF_PICTURES = 160  # a GIF is large, and is in memory as a whole
# The most pixels of a page's short side, by how many frames it may have: pages stay small
_SHORT_SIDES = ((64, 480), (256, 320), (1 << 62, 200))
_USUAL_FPS = 10.0  # where a video does not say


@dataclass(frozen=True)
class Result:
    """Of one video: its page and numbers, means over its clips, or why it is unreadable.

    covered: share of the measured loss in the hard tubes; hard: the share of the clip they are.
    Without a predictor there is neither rank accuracy nor Spearman. thumbnail: a picture's address.
    """

    name: str
    page: Path | None = None
    rank_accuracy: float | None = None
    spearman: float | None = None
    covered: float | None = None
    hard: float | None = None
    thumbnail: str = ""
    error: str | None = None


def visualize(
    checkpoint: str | Path,
    videos: Sequence[str | Path],
    output_dir: str | Path,
    *,
    view: View | None = None,
    formats: Sequence[str] = FORMATS,
    num_masks: int = NUM_MASKS,
    seed: int = 0,
    device: str = "auto",
) -> tuple[Path | None, list[Result]]:
    """Write a page per video, the same as files of ``formats``, and index.html to ``output_dir``.

    Returns the index and results in order; a video that cannot be read has an ``error`` in both.
    When none can be read there is no index. Raises ValueError (or FileNotFoundError) for a wrong
    checkpoint, no videos or one that does not exist, settings out of range, no place to write, or
    other files of the same names there.
    """
    if not videos:
        raise ValueError("videos (none) must name at least one file")
    for video in videos:
        if not os.path.exists(video):
            raise FileNotFoundError(f"video ({printable(str(video))}) does not exist")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed ({seed}) must be in [0, {2**63 - 1}]")
    at_least("num_masks", num_masks, 1)
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"formats ({name}) must be among {', '.join(FORMATS)}")
    folder, stems = Path(output_dir), _unique_stems(videos)
    check_can_be_folder(folder, name="output_dir")
    for file in ("index.html", *(f"{s}.{end}" for s in stems for end in ("html", *formats))):
        check_is_ours(folder / file, name="output_dir")
    with join_world(device, setting="device") as world:
        pretrained = load_pretrained(checkpoint, device=world.device)
        make_folder(output_dir, name="output_dir")
        asked = Asked(
            checkpoint=printable(str(checkpoint)),
            step=pretrained.step,
            settings=config_to_yaml(pretrained.config),
            num_masks=num_masks,
        )
        results: list[Result] = []
        for video, stem in zip(videos, stems, strict=True):
            name = printable(str(video))
            try:
                film = watch(pretrained, video, view=view or View(), num_masks=num_masks, seed=seed)
            except VideoReadError as error:
                results.append(Result(name, error=printable(error.reason)))
                continue
            write_film(film, asked, folder / stem, formats)
            results.append(_result(film, folder / f"{stem}.html"))
    if all(result.page is None for result in results):
        return None, results
    write_atomically(folder / "index.html", [index_page(results, asked, pretrained)])
    return folder / "index.html", results


def watch(
    pretrained: Pretrained,
    video: str | Path,
    *,
    view: View,
    num_masks: int = NUM_MASKS,
    seed: int = 0,
) -> Film:
    """Ask a checkpoint about the clips of a video. Raises VideoReadError."""
    data = pretrained.config.data
    facts = read_facts(video, data)
    indices = window_indices(facts.num_frames, data, view)
    short_side = next(side for frames, side in _SHORT_SIDES if indices.size <= frames)
    windows = []
    for frames in indices:
        window = read_window(video, frames, data, view, most_short_side=short_side)
        windows.append(
            tuple(
                ask(pretrained, window, crop=crop, seed=seed, num_masks=num_masks)
                for crop in range(len(window.crops))
            )
        )
    apart = max(1.0, float(np.diff(indices[0]).mean())) if indices.shape[1] > 1 else 1.0
    return Film(
        name=printable(str(video)),
        windows=tuple(windows),
        fps=(facts.fps or _USUAL_FPS) / apart,
        video_fps=facts.fps,
        num_frames=facts.num_frames,
        note=_note(indices, facts.num_frames, view),
    )


def write_film(film: Film, asked: Asked, path: Path, formats: Sequence[str] = FORMATS) -> None:
    """Write a page and files of ``formats`` as ``path`` with their endings."""
    write: dict[str, Callable[[Path], None]] = {
        "png": lambda file: _write_png(film, file),
        "mp4": lambda file: write_mp4(film_frames(film), file, fps=film.fps),
        "gif": lambda file: _write_gif(film, file),
    }
    for name in formats:
        write[name](path.with_name(f"{path.name}.{name}"))
    write_atomically(path.with_name(f"{path.name}.html"), [video_page(film, asked)])


def index_page(results: Sequence[Result], asked: Asked, pretrained: Pretrained) -> str:
    """The page with links to those of all videos, numbers, and what could not be read."""
    lines, bad = [], []
    for result in results:
        if result.page is None:
            bad.append(f"<li>{text(result.name)}: {text(result.error)}")
            continue
        link = text(quote(os.fsencode(result.page.name)))  # names hold any byte
        covered = f"{result.covered:.0%} ({result.hard:.0%})"
        lines.append(
            f'<tr><td><a href="{link}"><img alt="" src="{result.thumbnail}">{text(result.name)}</a>'
            f"<td>{_number(result.rank_accuracy)}<td>{_number(result.spearman)}<td>{covered}"
        )
    head = "<tr><th>video<th>rank accuracy<th>Spearman<th>covered"
    return fill_page(
        {
            "title": text(f"What {asked.checkpoint} finds hard"),
            "notes": PLAIN if pretrained.scorer is None else "",
            "hard_ratio": f"{hard_ratio_of(pretrained):g}",
            "videos": f'<table class="index">{head}{"".join(lines)}</table>',
            "bad": f"<h2>Unreadable</h2><ul>{''.join(bad)}</ul>" if bad else "",
            "step": str(asked.step),
            "settings": html.escape(asked.settings),
            "css": css("page"),
        },
        "index.html",
    )


def _write_gif(film: Film, path: Path) -> None:
    """A film, as fast as it is; of a long one every second, third, ... picture."""
    step = math.ceil(len(film.timeline()) / MOST_GIF_PICTURES)
    write_gif(islice(film_frames(film), 0, None, step), path, fps=film.fps / step)


def _write_png(film: Film, path: Path) -> None:
    """The figure of the clip in the middle, of its middle crop."""
    crops = film.windows[len(film.windows) // 2]
    drawn = picture(crops[len(crops) // 2], title=Path(film.name).name[:60])
    with whole_file(path) as temporary:
        drawn.savefig(temporary, format="png", metadata={"Software": OURS})


def _result(film: Film, page: Path) -> Result:
    clips = [tubes for crops in film.windows for tubes in crops]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    middle = film.windows[len(film.windows) // 2][0].frames
    step = -(-min(middle.shape[1:3]) // 130)  # small enough for a list
    return Result(
        film.name,
        page,
        rank_accuracy=mean([tubes.rank_accuracy for tubes in clips]),
        spearman=mean([tubes.spearman for tubes in clips]),
        covered=mean([tubes.covered(tubes.hard) for tubes in clips]),
        hard=mean([float(tubes.hard.mean()) for tubes in clips]),
        thumbnail=jpeg(middle[len(middle) // 2, ::step, ::step], quality=80),
    )


def _note(indices: Indices, num_frames: int, view: View) -> str:
    notes = []
    repeats = int((np.diff(indices[-1]) == 0).sum())
    if repeats:
        notes.append(
            f"The video is shorter than its clip: {repeats} of {indices.shape[1]} frames repeat "
            "the one before, as they do in training."
        )
    if view.whole_video and len(indices) == view.max_windows:
        notes.append(
            f"At most {view.max_windows} clips are shown: of a longer video evenly picked ones."
        )
    if view.whole_frame:
        notes.append("The model sees the whole picture, pressed into a square.")
    return " ".join(notes)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _unique_stems(videos: Sequence[str | Path]) -> list[str]:
    """File names without ending, told apart by a number where they repeat."""
    stems: list[str] = ["index"]  # the list's own page
    for video in videos:
        stem, number = Path(video).stem[:50] or "video", 1
        name = stem
        while name.casefold() in {taken.casefold() for taken in stems}:
            name = f"{stem}_{(number := number + 1)}"
        stems.append(name)
    return stems[1:]
