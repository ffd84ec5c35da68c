"""Videos of every kind, freshly damaged, read with every reader.

``python tests/damaged_videos.py --count 150`` makes them, reads each in a process that can be
killed, and prints what is wrong and a table. The ffmpeg command line says which frames are as they
were before the damage.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from numbered_videos import Recipe, draw_recipe, indexed, write_video
from reference import by_pyav, cells, fitted, in_order, track

from hpm_video.config.values import Decoder
from hpm_video.data.prepare.verdict import BAD, inspect_video, silence
from hpm_video.data.video.frames import Video, VideoReadError, missing, open_video
from hpm_video.runtime.replies import answer
from hpm_video.runtime.workers import ItemTimeout, WorkerDied, run_killable

_NUM_FRAMES = 100
_TOLERANCE = 8.0  # of means of 8 x 8 cells, of 255
_SINGLES, _CLIPS, _CLIP_FRAMES = 12, 4, 8
_Cells = npt.NDArray[np.float32]  # (T, 8, 8, 3), see `reference.cells`
_Damage = Callable[[Path, Path, np.random.Generator], None]


def truncated(source: Path, target: Path, rng: np.random.Generator) -> None:
    """Cut off somewhere."""
    data = source.read_bytes()
    target.write_bytes(data[: int(rng.integers(len(data) // 20, len(data)))])


def bits(source: Path, target: Path, rng: np.random.Generator) -> None:
    """Single bits flipped, in up to three places."""
    data = bytearray(source.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        start = int(rng.integers(len(data)))
        for place in rng.integers(start, min(start + 2000, len(data)), int(rng.integers(1, 12))):
            data[place] ^= 1 << int(rng.integers(8))
    target.write_bytes(data)


def overwritten(source: Path, target: Path, rng: np.random.Generator) -> None:
    """A run of bytes that are others, or zeros as of a disk that lost a block."""
    data = bytearray(source.read_bytes())
    start, length = int(rng.integers(len(data))), int(rng.choice([1, 10, 200, 2000]))
    run = rng.bytes(length) if rng.random() < 0.7 else bytes(length)
    data[start : start + length] = run[: len(data) - start]
    target.write_bytes(data)


def joined(source: Path, target: Path, rng: np.random.Generator) -> None:
    """The file, and itself or a part of itself after it, as `cat` does."""
    data = source.read_bytes()
    start = 0 if rng.random() < 0.7 else int(rng.integers(len(data)))
    target.write_bytes(data + data[start:])


def retimed(source: Path, target: Path, rng: np.random.Generator) -> None:
    """Times that are shuffled, all the same, or jump."""
    how = rng.choice(["shuffled", "same", "jumping"])

    def new_times(times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if how == "shuffled":
            return rng.permutation(times)
        if how == "same":
            return np.full_like(times, times[0])
        jump = int(rng.integers(1, len(times)))
        back = int(times[jump]) - int(times[0]) if rng.random() < 0.5 else -90_000
        return times - np.where(np.arange(len(times)) >= jump, back, 0)

    {"mp4": _retime_mp4, "mov": _retime_mp4, "ts": _retime_ts, "flv": _retime_flv}.get(
        source.suffix[1:], _retime_matroska
    )(source, target, new_times)


_NewTimes = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
_RETIMED = ("mp4", "mov", "mkv", "webm", "ts", "flv")


def _retime_mp4(source: Path, target: Path, new_times: _NewTimes) -> None:
    """In the tables of steps (stts) and of offsets (ctts)."""
    data = bytearray(source.read_bytes())
    for name in (b"stts", b"ctts"):
        if (place := data.find(name)) < 0:
            continue
        (count,) = struct.unpack_from(">I", data, place + 8)
        table = np.frombuffer(data, ">u4", 2 * count, place + 12).reshape(-1, 2).copy()
        if count:
            table[:, 1] = new_times(table[:, 1].astype(np.int64)).clip(0, 2**31 - 1)
            data[place + 12 : place + 12 + table.nbytes] = table.tobytes()
    target.write_bytes(data)


def _retime_ts(source: Path, target: Path, new_times: _NewTimes) -> None:
    """In the headers of the video's packets, 33 bits in five bytes."""
    data = bytearray(source.read_bytes())
    places, place = [], -1
    while (place := data.find(b"\0\0\1\xe0", place + 1)) >= 0:
        if place + 14 <= len(data) and data[place + 7] & 0x80:
            places.append(place + 9)
    old = [int.from_bytes(data[p : p + 5], "big") for p in places]
    times = np.array([t >> 3 & 7 << 30 | t >> 2 & 0x7FFF << 15 | t >> 1 & 0x7FFF for t in old])
    for place, before, time in zip(places, old, (new_times(times) % 2**33).tolist(), strict=True):
        spread = (time & 7 << 30) << 3 | (time & 0x7FFF << 15) << 2 | (time & 0x7FFF) << 1
        kept = before & (0xF << 36 | 1 << 32 | 1 << 16 | 1)
        data[place : place + 5] = (kept | spread).to_bytes(5, "big")
    target.write_bytes(data)


def _retime_flv(source: Path, target: Path, new_times: _NewTimes) -> None:
    """In the headers of tags."""
    data = bytearray(source.read_bytes())
    places, place = [], 13
    while place + 11 <= len(data):
        if data[place] == 9:
            places.append(place + 4)
        place += 15 + int.from_bytes(data[place + 1 : place + 4], "big")
    times = np.array([int.from_bytes(data[p : p + 3], "big") for p in places])
    for place, time in zip(places, new_times(times).clip(0, 2**24 - 1).tolist(), strict=True):
        data[place : place + 3] = time.to_bytes(3, "big")
    target.write_bytes(data)


def _retime_matroska(source: Path, target: Path, new_times: _NewTimes) -> None:
    """In the headers of blocks: a track, 16 bits of time, flags, then the packet."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    places, place = [], 0
    for packet in packets:
        place = data.index(packet, place)
        places.append(place - 3)
        place += len(packet)
    times = np.array([int.from_bytes(data[p : p + 2], "big", signed=True) for p in places])
    for place, time in zip(places, new_times(times).clip(-(2**15), 2**15 - 1), strict=True):
        data[place : place + 2] = int(time).to_bytes(2, "big", signed=True)
    target.write_bytes(data)


# Without an index, PyAV reads for the others too
READERS = ("decord", "torchcodec", "pyav", "pyav, no index")
DAMAGES: tuple[_Damage, ...] = (truncated, bits, overwritten, joined, retimed)


@dataclass(frozen=True)
class Damaged:
    """A damaged file."""

    seed: int
    path: str
    damage: str
    recipe: Recipe
    before: _Cells  # what ffmpeg makes of it, as far as it is what it makes of the whole file
    in_order: _Cells  # what PyAV makes of it, whole and in order
    is_sound: bool  # whether that went without errors, and all the frames came


@answer
@dataclass(frozen=True)
class Finding:
    """What became of a file with a reader."""

    status: str
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Examine:
    """Reads a damaged file in every way with one reader; for a process that may be killed."""

    reader: str  # one of READERS

    @property
    def decoder(self) -> Decoder:
        return self.reader.split(",")[0]  # type: ignore[return-value]

    def _open(self, file: Damaged) -> Video:
        table = None if "no index" in self.reader else indexed(Path(file.path))
        return open_video(file.path, self.decoder, table=table)

    def __call__(self, file: Damaged) -> Finding:
        silence()
        verdict = inspect_video(file.path)
        if verdict.status == BAD:
            problems = list(self._of_bad(file, verdict.reason))
        else:
            try:
                problems = list(self._of_good(file, verdict.num_frames))
            except VideoReadError as error:
                problems = [f"claimed, but cannot be read: {error.reason}"]
        return Finding(verdict.status, tuple(problems))

    def _of_bad(self, file: Damaged, reason: str) -> Iterator[str]:
        if "Error:" in reason:
            yield f"unforeseen: {reason}"
        if file.is_sound:
            yield f"refused, though all frames decode: {reason}"
        if len(file.before):  # as far as it can be read it must be right
            try:
                video = self._open(file)
                frame = video.read([0])[0]
            except VideoReadError:
                return
            if _is_other(cells(frame), file.before[0]):
                yield "wrong before the damage: frame 0"

    def _of_good(self, file: Damaged, num_frames: int | None) -> Iterator[str]:
        video = self._open(file)
        if video.num_frames != num_frames:
            yield f"count: check says {num_frames}, the reader {video.num_frames}"
        if video.num_frames != len(file.in_order):
            yield f"count: {video.num_frames}, in order {len(file.in_order)}"
        whole = video.read(range(video.num_frames))
        seen = np.stack([cells(frame) for frame in whole])
        for what, expected in (("before the damage", file.before), ("of all", file.in_order)):
            pairs = list(zip(seen, expected, strict=False))
            wrong = [index for index, pair in enumerate(pairs) if _is_other(*pair)]
            if wrong or (len(pairs) < len(expected) and expected is file.before):
                yield f"wrong {what}: {len(wrong)} of {len(expected)}, {wrong[:5]}"
        yield from self._alone(file, whole)

    def _alone(self, file: Damaged, whole: npt.NDArray[np.uint8]) -> Iterator[str]:
        rng = np.random.default_rng((file.seed, 1))
        count = len(whole)
        asked = [[int(index)] for index in rng.permutation(count)[:_SINGLES]]
        for _ in range(_CLIPS):
            start, step = int(rng.integers(count)), int(rng.integers(1, 5))
            asked.append([min(start + step * k, count - 1) for k in range(_CLIP_FRAMES)])
        table = None if "no index" in self.reader else indexed(Path(file.path))
        for indices in asked:
            frames = open_video(file.path, self.decoder, table=table).read(indices)
            if not np.array_equal(frames, whole[indices]):
                what = "alone" if len(indices) == 1 else "in a clip"
                wrong = [i for i, f in zip(indices, frames, strict=True) if (f != whole[i]).any()]
                yield f"other frames {what}: {wrong[:5]}"
                return


def _is_other(seen: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> bool:
    return seen.shape != expected.shape or bool(np.abs(seen - expected).max() > _TOLERANCE)


def make(seed: int, folder: Path) -> Damaged | None:
    """The damaged file number `seed`; None where the damage left it as it was."""
    damage = DAMAGES[seed % len(DAMAGES)]
    draw = seed
    while (recipe := draw_recipe(draw)).codec == "gif" or (
        damage is retimed and recipe.suffix not in _RETIMED
    ):
        draw += 100_003
    recipe = replace(recipe, num_frames=_NUM_FRAMES, rotation=0, start=0.0)
    if damage is retimed and recipe.suffix in ("mp4", "mov"):
        recipe = replace(recipe, variable=True)  # else one row of the table is for all frames
    source = write_video(folder / f"{seed}-whole", recipe)
    target = folder / f"{seed}-{damage.__name__}.{recipe.suffix}"
    damage(source, target, np.random.default_rng((seed, 0)))
    whole, broken = _cells_in_order(source), _cells_in_order(target)
    same = 0
    for before, after in zip(whole, broken, strict=False):
        if np.abs(before - after).max() > 0.01:
            break
        same += 1
    in_pyav, is_sound = _cells_by_pyav(target)
    source.unlink()
    is_sound = is_sound and len(in_pyav) >= _NUM_FRAMES
    return Damaged(seed, str(target), damage.__name__, recipe, broken[:same], in_pyav, is_sound)


def _cells_in_order(path: Path) -> _Cells:
    return np.array([cells(frame) for frame in in_order(path)], dtype=np.float32)


def _cells_by_pyav(path: Path) -> tuple[_Cells, bool]:
    """The same by PyAV, and whether it went without errors."""
    index = track(path)
    frames, damaged = by_pyav(path, index) if index is not None else ([], [])
    fit = [fitted(frame, frames[0].shape[:2]) for frame in frames]
    return np.array([cells(f) for f in fit], dtype=np.float32), bool(fit) and not any(damaged)


def examine(
    count: int,
    first: int,
    readers: Sequence[str],
    *,
    num_workers: int = 2,
    timeout_s: float = 60.0,
    keep: Path | None = None,
) -> tuple[Counter[tuple[str, str, str]], list[str]]:
    """Make files and read each with every reader.

    Returns how often (damage, reader, outcome) came, and a line for everything that is wrong.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [made for seed in range(first, first + count) if (made := make(seed, folder))]
        for reader in readers:
            outcomes = run_killable(
                Examine(reader), files, num_workers=num_workers, timeout_s=timeout_s
            )
            for file, outcome in outcomes:
                if isinstance(outcome, ItemTimeout):
                    finding = Finding("hang", (str(outcome),))
                elif isinstance(outcome, WorkerDied):
                    finding = Finding("crash", (str(outcome),))
                else:
                    finding = outcome
                counts[file.damage, reader, finding.status] += 1
                counts[file.damage, reader, "wrong"] += bool(finding.problems)
                for problem in finding.problems:
                    lines.append(f"{Path(file.path).name} {reader}: {problem} ({file.recipe})")
                if keep and finding.problems:
                    shutil.copy(file.path, keep)
    return counts, lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Damage videos, read each with every reader, print what is wrong; returns the exit code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=150, help="files (default 150)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first one")
    parser.add_argument("--keep", type=Path, help="folder for files that are read wrongly")
    parser.add_argument("--workers", type=int, default=2, help="files at once (default 2)")
    parser.add_argument("--reader", nargs="+", default=READERS, help="(default: all)")
    options = parser.parse_args(arguments)
    readers = [reader for reader in options.reader if not missing(reader.split(",")[0])]
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    counts, lines = examine(
        options.count, options.seed, readers, num_workers=options.workers, keep=options.keep
    )
    print("\n".join(sorted(lines)))
    outcomes = ("ok", "damaged", "bad", "hang", "crash", "wrong")
    print(f"\n{'damage':12} {'reader':14} " + " ".join(f"{name:>7}" for name in outcomes))
    for damage in DAMAGES:
        for reader in readers:
            row = [counts[damage.__name__, reader, name] for name in outcomes]
            print(f"{damage.__name__:12} {reader:14} " + " ".join(f"{n:7}" for n in row))
    return 1 if lines else 0


if __name__ == "__main__":
    import damaged_videos  # by its name, under which workers find what they run

    sys.exit(damaged_videos.main())
