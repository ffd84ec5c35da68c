"""Measure what a checkpoint finds hard in a data set; write the page and its CSV tables."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpm_video.data.lists.manifest import check_some_exist, read_manifest
from hpm_video.data.loading.bad_videos import none_readable
from hpm_video.evaluate.pretrained import load_pretrained
from hpm_video.runtime import files
from hpm_video.runtime.distributed import join_world
from hpm_video.visualize.dataset_losses import Asking, measure_list
from hpm_video.visualize.dataset_page import dataset_page
from hpm_video.visualize.hardness import Array, ClipNumbers, Hardness, Losses, clip_numbers

PAGE = "dataset.html"
_OF_CLIPS = (
    *("path", "label", "class", "predicted_loss", "measured_loss", "spearman", "tube_spearman"),
    *("position_alone", "predicted_centre_bias", "measured_centre_bias"),
    *("predicted_central_share", "measured_central_share", "error"),
)
_OF_PLACES = ("row", "column", "predicted_loss", "measured_loss", "predicted_rank", "measured_rank")
TABLES = {
    "clips.csv": _OF_CLIPS,
    "positions.csv": _OF_PLACES,
    "times.csv": ("time_step", *_OF_PLACES[2:]),
}


def visualize_list(
    checkpoint: str | Path,
    manifests: Sequence[str | Path],
    output_dir: str | Path,
    *,
    root: str | None = None,
    no_labels: bool = False,
    num_masks: int = 4,
    num_views: int = 4,
    num_shown: int = 12,
    batch_size: int = 8,
    num_workers: int = 8,
    decode_timeout_s: float | None = 60.0,
    seed: int = 0,
    device: str = "auto",
) -> tuple[Path, Hardness | None]:
    """Write dataset.html and its CSV tables to ``output_dir``; ``no_labels`` leaves classes out.

    Returns the page and, on rank 0, the results. Raises ValueError (or FileNotFoundError) for a
    wrong checkpoint, list or number, a folder that cannot be written, or files there that are not
    ours; UnreadableDataError if no video is readable.
    """
    asking = Asking(
        *(num_masks, num_views, num_shown, batch_size, num_workers), decode_timeout_s, seed
    )
    folder = Path(output_dir)
    files.check_can_be_folder(folder, name="output_dir")
    files.check_is_ours(folder / PAGE, name="output_dir", folder=folder)
    for name, columns in TABLES.items():
        files.check_is_ours(folder / name, columns=columns, name="output_dir", folder=folder)
    manifest = read_manifest([str(path) for path in manifests], root=root, labels=not no_labels)
    check_some_exist(manifest, option="--root ")
    with join_world(device, setting="--device") as world:
        pretrained = load_pretrained(checkpoint, device=world.device)
        if world.is_main:
            files.make_folder(output_dir, name="output_dir")
        found = measure_list(pretrained, manifest, asking, world)
    if found is None:
        return folder / PAGE, None
    if not len(found.indices):
        raise none_readable([(manifest.path(index), reason) for index, reason in found.bad])
    numbers = clip_numbers(found)
    names = str(checkpoint), [str(path) for path in manifests]
    text = dataset_page(pretrained, found, numbers, asking, names)
    for name, rows in _tables(found, numbers).items():
        files.write_csv(folder / name, TABLES[name], rows)
    files.write_atomically(folder / PAGE, [text])
    return folder / PAGE, found


def _tables(found: Hardness, numbers: ClipNumbers) -> dict[str, Iterable[Sequence[object]]]:
    """Rows of clips.csv (one per list row), positions.csv and times.csv."""
    both = (found.predicted, found.measured)

    def means(kind: Callable[[Losses], npt.NDArray[np.floating]]) -> list[Array | None]:
        return [None if one is None else kind(one).mean(axis=0, dtype=np.float64) for one in both]

    maps = means(lambda losses: losses.tubes) + means(Losses.tube_ranks)
    lines = means(lambda losses: losses.times) + means(Losses.time_ranks)
    cells = np.ndindex(found.grid.height, found.grid.width)
    steps = range(found.grid.time)
    return {
        "clips.csv": _clip_rows(found, numbers),
        "positions.csv": ((*cell, *(_number(a, cell) for a in maps)) for cell in cells),
        "times.csv": ((step, *(_number(a, step) for a in lines)) for step in steps),
    }


def _clip_rows(found: Hardness, numbers: ClipNumbers) -> Iterable[Sequence[object]]:
    manifest, errors = found.manifest, dict(found.bad)
    rows = {int(index): row for row, index in enumerate(found.indices)}
    for index in range(len(manifest)):
        label = manifest.label(index)
        words = (manifest.path(index), None if label < 0 else label, found.class_name(label))
        row = rows.get(index)
        shown = ("" if row is None else _number(numbers[column], row) for column in _OF_CLIPS[3:-1])
        yield (*words, *shown, errors.get(index))


def _number(values: Array | None, place: int | tuple[int, ...]) -> str:
    return "" if values is None else f"{values[place]:.9g}"
