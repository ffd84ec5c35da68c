"""Time and memory of `hpm-video data check` on a long list of tiny videos.

    python tools/measure/checking.py [--rows 100000] [--workers 2] [--decode] [--folder DIR]

The list names the same twenty files under different names (links); one of them is not a video.
Unless asked to --decode every row, a worker decodes each of the twenty once and then repeats its
verdict: what is left is the cost of the rows. Memory is the peak of the process with the list.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np

from hpm_video.cli.main import main as hpm_video
from hpm_video.data.prepare import check
from hpm_video.data.prepare.verdict import Verdict


@cache
def _inspected(inspect: check.Inspect, path: str) -> Verdict:
    return check.Inspect.__call__(inspect, (path, None))


@dataclass(frozen=True)
class Remembering(check.Inspect):
    """Decodes every file once, whatever its names."""

    def __call__(self, video: check.Video) -> Verdict:
        return _inspected(self, os.path.realpath(video[0]))


def _write_video(path: Path, number: int) -> None:
    """A tiny H.264 mp4 of eight frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in range(8):
            pixels = np.full((32, 48, 3), 20 * frame + number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _write_list(folder: Path, num_rows: int) -> Path:
    videos = []
    for number in range(19):
        videos.append(folder / f"source{number}.mp4")
        _write_video(videos[-1], number)
    videos.append(folder / "source_text.mp4")
    videos[-1].write_text("not a video")
    lines = ["path,label,note\n"]
    for row in range(num_rows):
        name = f"videos/{row // 1000:04d}/clip_{row:07d}.mp4"
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(videos[row % len(videos)])
        lines.append(f"{name},{row % 400},of the user\n")
    listed = folder / "train.csv"
    listed.write_text("".join(lines))
    return listed


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--decode", action="store_true", help="decode the video of every row")
    parser.add_argument("--folder", help="parent of the folder of videos (default: temporary)")
    asked = parser.parse_args()
    if not asked.decode:
        check.Inspect = Remembering  # type: ignore[misc]
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        listed = _write_list(Path(name), asked.rows)
        before, start = _peak_mib(), time.perf_counter()
        with redirect_stdout(sys.stderr):
            code = hpm_video(["data", "check", str(listed), "--num-workers", str(asked.workers)])
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_SELF)
        sizes = {path.name: path.stat().st_size / 1e6 for path in sorted(Path(name).glob("train*"))}
    sys.stdout.write(
        f"{asked.rows:,} rows, exit code {code}: {seconds:.0f} s, {1e3 * seconds / asked.rows:.2f} "
        f"ms per row; main process: {used.ru_utime + used.ru_stime:.0f} s of CPU time, peak "
        f" {before:.0f} -> {_peak_mib():.0f} MiB\n"
        + "".join(f"{file}: {size:.1f} MB\n" for file, size in sizes.items())
    )


if __name__ == "__main__":
    import checking  # by its name, under which workers find its class

    checking.main()
