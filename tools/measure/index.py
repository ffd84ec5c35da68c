"""Size of an index of a list, and the time to open it and to look videos up.

    python tools/measure/index.py [--files 240000] [--frames 300] [--folder DIR]

The tables are those of real videos, which this writes and decodes: H.264 as encoders write it,
with B-frames, and as `hpm-video data transcode` does. The index has them again and again, under
names like those of Kinetics.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from hpm_video.data.lists.frame_index import FrameIndex, write_frame_index
from hpm_video.data.prepare.encode import Encoding, encode_video
from hpm_video.data.video.frame_table import FrameTable
from hpm_video.data.video.readers.tables import decoded_table


def _write_video(path: Path, num_frames: int) -> None:
    """Textures that drift, with a cut now and then, as x264 encodes them by default."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for number in range(num_frames):
            if number % 90 == 0:
                texture = (
                    rng.integers(0, 256, (24, 32, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
                )
            pixels = np.roll(texture, number, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _name(number: int) -> str:
    return f"abseiling_{number % 400}/{number:011d}_000012_000022.mp4"


def _first_start(path: Path) -> str:
    """Opening it in a new process, with nothing of it in that process's memory."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from hpm_video.data.lists.frame_index import FrameIndex\n"
        f"start = time.perf_counter(); FrameIndex(Path({str(path)!r}))\n"
        "print(f'{1e3 * (time.perf_counter() - start):.2f} ms')"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=240_000)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument(
        "--folder", help="parent of the folder to write to (default: the system's temporary folder)"
    )
    asked = parser.parse_args()
    say = sys.stdout.write
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        raw, small = Path(name) / "raw.mp4", Path(name) / "small.mp4"
        _write_video(raw, asked.frames)
        encode_video(str(raw), str(small), Encoding())
        tables = []
        for path in (raw, small):
            table = decoded_table(str(path))
            tables.append(table.to_bytes())
            say(f"{path.stem}: {table.num_frames} frames, {len(table.starts)} keyframes, ")
            say(f"table of {len(tables[-1])} bytes\n")
        for label, table in zip(("raw", "small"), tables, strict=True):
            file = Path(name) / f"{label}.csv.index"
            start = time.perf_counter()
            write_frame_index(file, ((_name(k), table) for k in range(asked.files)))
            written_s = time.perf_counter() - start
            opened = _first_start(file)
            index, rng = FrameIndex(file), np.random.default_rng(0)
            names = [_name(int(k)) for k in rng.integers(asked.files, size=10_000)]
            start = time.perf_counter()
            found = [index.get(wanted) for wanted in names]
            looked_up_us = (time.perf_counter() - start) / len(names) * 1e6
            assert all(one == table for one in found)
            start = time.perf_counter()
            for one in found[:1000]:
                assert one is not None and FrameTable.from_bytes(one) is not None
            unpacked_us = (time.perf_counter() - start) / 1000 * 1e6
            say(
                f"{label}: {asked.files:,} names, {file.stat().st_size / 1e6:.0f} MB, written in "
                f"{written_s:.1f} s; opened in {opened}; {looked_up_us:.0f} us to look up a video, "
                f"{unpacked_us:.0f} us to unpack its table in a worker\n"
            )


if __name__ == "__main__":
    main()
