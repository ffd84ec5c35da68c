"""What a clip of an hour costs, against one of ten seconds; and what an index of many files costs.

    python tools/measure/long_files.py clips FOLDER [--seconds 3600] [--size 128] [--fps 30]
    python tools/measure/long_files.py memory FOLDER [--clips 20000]
    python tools/measure/long_files.py index FOLDER [--files 240000]

FOLDER keeps the videos, made by `hpm-video data toy`, from one call to the next. `clips` reads 16
frames at random places, in turns of a long and of a short file with the same codec and groups of
pictures, in one process that has read from both before. Bytes are those that the process asks the
kernel for (`rchar` of /proc/self/io), and are held against the size of the groups that a clip
touches, plus what opening alone reads.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from hpm_video.data.lists.frame_index import FrameIndex, write_frame_index
from hpm_video.data.lists.rows import read_rows
from hpm_video.data.prepare.toy import KEYFRAME_INTERVAL, write_toy_videos
from hpm_video.data.video.frame_indices import random_dense_indices
from hpm_video.data.video.frame_table import FrameTable
from hpm_video.data.video.frames import open_video
from hpm_video.data.video.readers.tables import decoded_table


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


CONTAINERS = ("mp4", "mkv", "ts")
CLIP_FRAMES, STRIDE = 16, 4
SHORT_S = 10


def toy_files(folder: Path, seconds: int, size: int, fps: int) -> dict[str, Path]:
    """A toy video of so many seconds, in every container: the same packets."""
    made = folder / f"{seconds}s-{size}-{fps}"
    manifest = write_toy_videos(
        made, num_videos=1, size=size, num_frames=seconds * fps, fps=fps, formats=("mp4",)
    )
    (_, row), *_ = read_rows(manifest)
    files = {"mp4": made / row["path"]}
    for suffix in CONTAINERS[1:]:
        files[suffix] = made / f"video.{suffix}"
        if not files[suffix].exists():
            _rewrap(files["mp4"], files[suffix])
    return files


def _rewrap(source: Path, target: Path) -> None:
    part = target.with_name(f"part-{target.name}")
    with av.open(str(source)) as old, av.open(str(part), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    part.rename(target)


def group_bytes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The group of pictures of each frame, and the bytes of each group, counted by FFmpeg."""
    groups: list[int] = []
    sizes: list[int] = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size:
                if packet.is_keyframe:
                    sizes.append(0)
                groups.append(len(sizes) - 1)
                sizes[-1] += packet.size
    return np.array(groups), np.array(sizes)


def bytes_read() -> int:
    """By this process, from files."""
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return int(text.split("rchar: ")[1].split()[0])


def memory_mib() -> float:
    """Of this process, in use."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def make_table(path: Path) -> bytes:
    """What `data check` stores of a file."""
    return decoded_table(str(path)).to_bytes()


def clip_reader(path: Path, decoder: str, table: bytes | None) -> Callable[[np.ndarray], None]:
    """Reads frames of a file that it opens each time, as a worker does."""
    known = {} if table is None else {"table": table}

    def read(indices: np.ndarray) -> None:
        open_video(path, decoder, **known).read(indices)

    return read


def clip_indices(num_frames: int, number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return random_dense_indices(num_frames, clip_frames=CLIP_FRAMES, stride=STRIDE, rng=rng)


def measure_clips(asked: argparse.Namespace) -> None:
    """Print a row for each container, with the stored table and without."""
    lengths = (SHORT_S, asked.seconds)
    files = {s: toy_files(asked.folder, s, asked.size, asked.fps) for s in lengths}
    say(
        f"{asked.decoder}, {CLIP_FRAMES} frames, stride {STRIDE}, a keyframe every "
        f"{KEYFRAME_INTERVAL} frames"
    )
    say(
        f"{'file':5} {'MiB':>6} {'table':>9} {'open ms':>8} {'clip ms':>8} {'short ms':>8} "
        f"{'ratio':>6} {'KiB read':>9} {'groups KiB':>10} {'open KiB':>8}"
    )
    for suffix in asked.containers:
        paths = [files[asked.seconds][suffix], files[SHORT_S][suffix]]
        counts = [s * asked.fps for s in (asked.seconds, SHORT_S)]
        groups, sizes = group_bytes(paths[0])
        tables = [make_table(path) for path in paths]
        for name, known in (("none", [None, None]), ("stored", tables)):
            readers = [
                clip_reader(*pair) for pair in zip(paths, [asked.decoder] * 2, known, strict=True)
            ]
            seconds: tuple[list[float], list[float]] = ([], [])
            read, needed = [], []
            # Without a table each clip of a long file costs a pass over it
            for number in range(3 + (asked.clips if name == "stored" else min(asked.clips, 5))):
                for place, reader in enumerate(readers):
                    indices = clip_indices(counts[place], number)
                    before, start = bytes_read(), time.perf_counter()
                    reader(indices)
                    took = time.perf_counter() - start
                    if number >= 3:
                        seconds[place].append(took)
                        if place == 0:
                            read.append(bytes_read() - before)
                            needed.append(int(sizes[np.unique(groups[indices])].sum()))
            opening, header = _opening(paths[0], asked.decoder, known[0])
            long, short = (1000 * statistics.median(times) for times in seconds)
            size = f"{len(known[0])} B" if known[0] is not None else "none"
            say(
                f"{suffix:5} {paths[0].stat().st_size / 2**20:6.1f} {size:>9} "
                f"{1000 * opening:8.1f} {long:8.2f} {short:8.2f} {long / short:6.2f} "
                f"{statistics.median(read) / 1024:9.0f} {statistics.median(needed) / 1024:10.0f} "
                f"{header / 1024:8.0f}",
            )


def _opening(path: Path, decoder: str, table: bytes | None) -> tuple[float, float]:
    """Seconds and bytes of opening a file and nothing else, medians."""
    known = {} if table is None else {"table": table}
    seconds, read = [], []
    for _ in range(5):
        before, start = bytes_read(), time.perf_counter()
        open_video(path, decoder, **known)
        seconds.append(time.perf_counter() - start)
        read.append(bytes_read() - before)
    return statistics.median(seconds), statistics.median(read)


def measure_memory(asked: argparse.Namespace) -> None:
    """Print the memory of this process as it reads clips of long files."""
    files = toy_files(asked.folder, asked.seconds, asked.size, asked.fps)
    readers = [clip_reader(p, asked.decoder, make_table(p)) for p in files.values()]
    count = asked.seconds * asked.fps
    step = max(1, asked.clips // 10)
    for number in range(asked.clips + 1):
        if number % step == 0:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            say(f"{number:6} clips {memory_mib():7.1f} MiB, peak {most:7.1f} MiB")
        readers[number % len(readers)](clip_indices(count, number))


def measure_index(asked: argparse.Namespace) -> None:
    """Print what an index of many files of 300 frames costs, each with the table of a real one."""
    files = toy_files(asked.folder, SHORT_S, asked.size, asked.fps)
    tables = [make_table(path) for path in files.values()]
    sizes = ", ".join(f"{name} {len(table)}" for name, table in zip(files, tables, strict=True))
    say(f"bytes in a table of {SHORT_S * asked.fps} frames: {sizes}")
    path = asked.folder / "many.csv.index"
    names = [f"videos/class_{k % 400:03}/video_{k:08}.mp4" for k in range(asked.files)]
    start = time.perf_counter()
    write_frame_index(path, ((n, tables[k % len(tables)]) for k, n in enumerate(names)))
    say(f"{asked.files} files: {path.stat().st_size / 1e6:.0f} MB in {_since(start):.1f} s")
    before, start = memory_mib(), time.perf_counter()
    index = FrameIndex(path)
    say(f"to open: {1000 * _since(start):.2f} ms, {memory_mib() - before:.1f} MiB")
    chosen = [names[k] for k in np.random.default_rng(0).permutation(len(names))[:20_000]]
    start = time.perf_counter()
    found = [index.get(name) for name in chosen]
    took = 1e6 * _since(start) / len(chosen)
    assert None not in found
    say(f"to look up one, in random order: {took:.1f} us")
    start = time.perf_counter()
    for data in found[:2000]:
        FrameTable.from_bytes(data or b"")
    say(f"to unpack one: {1e6 * _since(start) / 2000:.0f} us")


def _since(start: float) -> float:
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("clips", "memory", "index"))
    parser.add_argument("folder", type=Path, help="folder for the videos, which are kept")
    parser.add_argument(
        "--seconds", type=int, default=3600, help="length of the long file (default 3600)"
    )
    parser.add_argument("--size", type=int, default=128, help="side in pixels (default 128)")
    parser.add_argument("--fps", type=int, default=30, help="frames per second (default 30)")
    parser.add_argument("--clips", type=int, help="clips to read (default 200; memory: 20000)")
    parser.add_argument(
        "--files", type=int, default=240_000, help="files in the index (default 240000)"
    )
    parser.add_argument(
        "--containers", nargs="+", default=CONTAINERS, help="container formats (default: all)"
    )
    parser.add_argument("--decoder", default="pyav", choices=("decord", "torchcodec", "pyav"))
    asked = parser.parse_args()
    asked.clips = asked.clips or (20_000 if asked.what == "memory" else 200)
    asked.folder.mkdir(parents=True, exist_ok=True)
    {"clips": measure_clips, "memory": measure_memory, "index": measure_index}[asked.what](asked)


if __name__ == "__main__":
    sys.exit(main())
