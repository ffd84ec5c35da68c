"""Pages, pictures and films of videos as a pre-training checkpoint sees them."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from os import PathLike
from pathlib import Path
from urllib.parse import quote

import numpy as np

from hpm_video.config.limits import at_least, between
from hpm_video.config.settings import config_to_yaml
from hpm_video.config.values import PictureFormat, values_of
from hpm_video.data.samples.scores import Tubelet
from hpm_video.data.video.frames import VideoReadError
from hpm_video.data.video.part import stem_of
from hpm_video.evaluate.pretrained import Pretrained, load_pretrained
from hpm_video.evaluate.relevance import Onlooker, load_onlooker
from hpm_video.runtime.distributed import join_world, pick_device
from hpm_video.runtime.files import (
    OURS,
    check_can_be_folder,
    check_is_ours,
    make_folder,
    printable,
    whole_file,
    write_atomically,
)
from hpm_video.runtime.pages import jpeg, page, short
from hpm_video.visualize.figures import picture
from hpm_video.visualize.films import film_frames, write_gif, write_mp4
from hpm_video.visualize.hard_tubes import NUM_MASKS, HardTubes, ask, hard_ratio_of
from hpm_video.visualize.verdict import RULE, Verdict, mean_of, verdict
from hpm_video.visualize.video_page import Asked, Film, video_page
from hpm_video.visualize.windows import View, check_videos, read_facts, read_window, window_indices
from hpm_video.weights.foreign.stored_model import version_of

FORMATS = values_of(PictureFormat)  # besides the page
MOST_GIF_PICTURES = 160  # GIFs are large and held in memory as a whole
# Maximum short side of pictures in pixels by number of frames, to limit the size of pages
_SHORT_SIDES = ((64, 480), (256, 320), (1 << 62, 200))
_USUAL_FPS = 10.0  # if the video does not state a rate


@dataclass(frozen=True)
class Result:
    """Result for one video: page and metrics, averaged over clips, or why it is unreadable.

    covered: share of the measured loss in the hard tubes; hard: their share of the clip.
    rank_accuracy and spearman are None without a predictor. thumbnail: address of a picture.
    """

    name: str
    page: Path | None = None
    rank_accuracy: float | None = None
    spearman: float | None = None
    covered: float | None = None
    hard: float | None = None
    thumbnail: str = ""
    error: str | None = None

    @property
    def link(self) -> str:
        """Address of the page, relative to its own folder."""
        return quote(os.fsencode(self.page.name)) if self.page else ""  # names may hold any byte

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on spearman."""
        return verdict(self.spearman)


def visualize(
    checkpoint: str | Path,
    videos: Sequence[str | Path],
    output_dir: str | Path,
    *,
    view: View | None = None,
    formats: Sequence[str] = FORMATS,
    num_masks: int = NUM_MASKS,
    seed: int = 0,
    classifier: str | Path | None = None,
    class_name: str | None = None,
    device: str = "auto",
) -> tuple[Path | None, list[Result]]:
    """Write a page per video, files of ``formats``, and index.html to ``output_dir``.

    With a fine-tuned ``classifier`` pages also show its relevance maps, for ``class_name`` or the
    likeliest class, see `hpm_video.evaluate.relevance`. Returns the index and the results in order.
    Unreadable videos have an ``error`` in both; if none is readable there is no index. Raises
    ValueError (or FileNotFoundError) for a wrong checkpoint or class, missing videos, settings out
    of range, a folder that cannot be written, or files there that are not ours.
    """
    check_videos(videos)
    between("seed", seed, 0, 2**63 - 1)
    at_least("num_masks", num_masks, 1)
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"formats ({name}) must be among {', '.join(FORMATS)}")
    folder, stems = Path(output_dir), _unique_stems(videos)
    check_can_be_folder(folder, name="output_dir")
    for file in ("index.html", *(f"{s}.{end}" for s in stems for end in ("html", *formats))):
        check_is_ours(folder / file, name="output_dir", folder=folder)
    with join_world(device, setting="--device") as world:
        pretrained = load_pretrained(checkpoint, device=world.device)
        onlooker = None
        if classifier is not None:
            onlooker = load_onlooker(classifier, pretrained, class_name=class_name)
        make_folder(output_dir, name="output_dir")
        look = partial(watch, pretrained, view=view or View(), num_masks=num_masks, seed=seed)
        settings = config_to_yaml(pretrained.config)
        asked = Asked(
            str(checkpoint),
            pretrained.step,
            settings,
            num_masks,
            None if classifier is None else str(classifier),
        )
        results: list[Result] = []
        for video, stem in zip(videos, stems, strict=True):
            try:
                film = look(video, onlooker=onlooker)
            except VideoReadError as error:
                results.append(Result(printable(str(video)), error=printable(error.reason)))
                continue
            write_film(film, asked, folder / stem, formats)
            results.append(_result(film, folder / f"{stem}.html"))
    if all(result.page is None for result in results):
        return None, results
    spearman = mean_of([result.spearman for result in results])
    index = page(
        __package__,
        "index.html",
        title=f"What {short(asked.checkpoint)} finds hard",
        title_path=asked.checkpoint,
        spearman=spearman,
        found=verdict(spearman),
        rule=RULE,
        is_plain=pretrained.scorer is None,
        hard_ratio=hard_ratio_of(pretrained),
        results=results,
        asked=asked,
    )
    write_atomically(folder / "index.html", [index])
    return folder / "index.html", results


def watch(
    pretrained: Pretrained,
    video: str | Path,
    *,
    view: View,
    num_masks: int = NUM_MASKS,
    seed: int = 0,
    at_full_size: bool = False,
    onlooker: Onlooker | None = None,
) -> Film:
    """Apply a checkpoint, and optionally a classifier, to the clips of a video.

    Frames are scaled down for a page unless ``at_full_size``. Raises VideoReadError.
    """
    data = pretrained.config.data
    tubelet = Tubelet(pretrained.config.model.tubelet_size, pretrained.config.model.patch_size)
    facts = read_facts(video, data)
    indices = window_indices(facts.num_frames, data, view)
    side = next(side for frames, side in _SHORT_SIDES if indices.size <= frames)
    short_side = None if at_full_size else side
    ask_about = partial(ask, pretrained, seed=seed, num_masks=num_masks, onlooker=onlooker)
    windows = []
    for frames in indices:
        window = read_window(video, frames, data, view, most_short_side=short_side, tubelet=tubelet)
        windows.append(tuple(ask_about(window, crop=crop) for crop in range(len(window.crops))))
    apart = max(1.0, float(np.diff(indices[0]).mean())) if indices.shape[1] > 1 else 1.0
    fps = (facts.fps or _USUAL_FPS) / apart
    return Film(printable(str(video)), tuple(windows), fps, facts.fps, facts.num_frames, view)


def hard_tubes_of_video(
    checkpoint: str | PathLike[str],
    path: str | PathLike[str],
    *,
    whole_frame: bool,
    num_masks: int,
    seed: int,
    device: str,
) -> HardTubes:
    """See `hpm_video.hard_tubes`."""
    model, view = os.fspath(checkpoint), View(whole_frame=whole_frame)
    pretrained = _pretrained(model, version_of(model), device)
    watched = partial(watch, pretrained, str(path), view=view, at_full_size=True)
    return watched(num_masks=num_masks, seed=seed).windows[0][0]


@lru_cache(maxsize=1)
def _pretrained(checkpoint: str, version: object, device: str) -> Pretrained:
    return load_pretrained(checkpoint, device=pick_device(device, setting="device"))


def write_film(film: Film, asked: Asked, path: Path, formats: Sequence[str] = FORMATS) -> None:
    """Write a page and files of ``formats`` to ``path`` plus their suffixes."""
    files = {end: path.with_name(f"{path.name}.{end}") for end in ("html", *FORMATS)}
    if "png" in formats:  # middle crop of the middle clip
        crops = film.windows[len(film.windows) // 2]
        drawn = picture(crops[len(crops) // 2], title=Path(film.name).name[:60])
        with whole_file(files["png"]) as temporary:
            drawn.savefig(temporary, format="png", metadata={"Software": OURS})
    if "mp4" in formats:
        write_mp4(film_frames(film), files["mp4"], fps=film.fps)
    if "gif" in formats:  # long films keep every second, third, ... picture
        step = math.ceil(len(film.timeline()) / MOST_GIF_PICTURES)
        write_gif(islice(film_frames(film), 0, None, step), files["gif"], fps=film.fps / step)
    write_atomically(files["html"], [video_page(film, asked)])


def _result(film: Film, page: Path) -> Result:
    clips = [tubes for crops in film.windows for tubes in crops]

    middle = film.windows[len(film.windows) // 2][0].frames
    step = -(-min(middle.shape[1:3]) // 130)  # small enough for the index
    return Result(
        film.name,
        page,
        rank_accuracy=mean_of([tubes.rank_accuracy for tubes in clips]),
        spearman=film.spearman,
        covered=mean_of([tubes.covered(tubes.hard) for tubes in clips]),
        hard=mean_of([float(tubes.hard.mean()) for tubes in clips]),
        thumbnail=jpeg(middle[len(middle) // 2, ::step, ::step], quality=80),
    )


def _unique_stems(videos: Sequence[str | Path]) -> list[str]:
    """File stems of videos, numbered if they repeat."""
    stems: list[str] = ["index"]  # reserved for index.html
    for video in videos:
        stem, number = stem_of(video)[:50] or "video", 1
        name = stem
        while name.casefold() in {taken.casefold() for taken in stems}:
            name = f"{stem}_{(number := number + 1)}"
        stems.append(name)
    return stems[1:]
