"""Reading the test views of videos: all of one at once, as `evaluate` does, and view by view.

Processor time per video, on one thread, of raw videos like those of two data sets. The same bytes.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
import torch

from hpm_video.bench.lookalike_videos import KINDS, read_sources, write_raw
from hpm_video.bench.report import Report, machine_facts, publish
from hpm_video.bench.timing import median_seconds
from hpm_video.config import DataConfig
from hpm_video.config.values import Decoder, values_of
from hpm_video.data.samples.clips import Request
from hpm_video.data.samples.views import ViewReader, view_indices
from hpm_video.data.video.crops import resize_crop, resize_short_side, view_crops

VIEWS = {"k400": ("dense", 5, 3), "ssv2": ("uniform", 2, 3)}  # sampling, clips, crops


def view_by_view(reader: ViewReader, request: Request, out: torch.Tensor, *, whole: bool) -> None:
    """Decode the video anew for every view; ``whole``: all of its stride-th frames."""
    for place in range(len(out)):
        clip, crop = divmod(place, reader.num_crops)
        video, data = request.open(reader.data), reader.data
        window = view_indices(video.num_frames, data, num_clips=reader.num_clips)[clip]
        read = np.union1d(np.arange(0, video.num_frames, data.frame_stride), window)
        read = read if whole else np.unique(window)
        frames = video.read(read)[np.searchsorted(read, window)]
        small = resize_short_side(frames, data.crop_size)
        box = view_crops(*small.shape[1:3], num_crops=reader.num_crops)[crop]
        out[place] = resize_crop(small, box, data.crop_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--source", metavar="FOLDER", help="folder of source videos (default: toy videos)"
    )
    parser.add_argument("--decoder", choices=values_of(Decoder), default="decord")
    for name, default in (("--videos", 6), ("--rounds", 5), ("--crop-size", 224)):
        parser.add_argument(name, type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cpu, rows = torch.device("cpu"), []
    with tempfile.TemporaryDirectory() as folder:
        sources = read_sources(Path(folder), asked.source, asked.videos)
        for kind in KINDS:
            stem = Path(folder) / kind.name
            paths = [write_raw(Path(f"{stem}_{k}"), kind, f) for k, f in enumerate(sources)]
            sampling, clips, crops = VIEWS[kind.name]
            how = {"crop_size": asked.crop_size, "decoder": asked.decoder}
            how |= {"num_frames": 16, "frame_stride": kind.stride, "sampling": sampling}
            reader = ViewReader(DataConfig(**how), clips, crops)
            reads = {"all at once": reader.read}
            reads["view by view"] = partial(view_by_view, reader, whole=False)
            if sampling == "dense":  # the views of the other are of the whole video anyway
                reads["view by view, whole video"] = partial(view_by_view, reader, whole=True)
            asks = [Request(k, str(path), 0) for k, path in enumerate(paths)]
            outs = {name: torch.empty(reader.shape, dtype=torch.uint8) for name in reads}
            calls = {
                (n, k): partial(reads[n], ask, outs[n]) for k, ask in enumerate(asks) for n in reads
            }
            times = median_seconds(calls, rounds=asked.rounds, device=cpu, clock=process_time)
            seconds = {n: sum(times[n, k] for k in range(len(asks))) / len(asks) for n in reads}
            assert all(torch.equal(out, outs["all at once"]) for out in outs.values())
            for name, value in seconds.items():
                row = {"videos": kind.name, "loader": name, "seconds": value}
                rows.append({**row, "ratio": value / seconds["all at once"]})
    publish(Report("views", machine_facts(cpu), vars(asked), rows))


if __name__ == "__main__":
    main()
