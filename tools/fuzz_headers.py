"""Damage the headers of small files at random, and test how readers cope.

    python tools/fuzz_headers.py [--videos 2400] [--weights 300] [--seed 0] [--workers 2]

Videos (mp4, mkv, webm, avi, gif, ts) go through `hpm-video data check` and a loader with each
decoder, weights (safetensors, pt) through `hpm-video weights inspect`. The tool counts unexpected
errors (a traceback, or a reason that starts with an error type), hangs and crashes, and records the
peak memory. Exit code 1 if there are any, or if a process exceeds the memory limit.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
from safetensors.torch import save_file

from hpm_video.cli.main import main as hpm_video
from hpm_video.config import DataConfig
from hpm_video.data.lists.frame_index import index_beside
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.loader import view_loader
from hpm_video.data.samples.views import ViewDataset
from hpm_video.data.video.limits import WRITING
from hpm_video.runtime.workers import run_killable

_CODECS = {
    "mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4", "gif": "gif",
    "ts": "libx264",
}  # fmt: skip
_WEIGHTS = ("safetensors", "pt")
_MOST_MIB = 1536  # per process: PyTorch and the decoders alone take about 760
_LIMIT_S = 20.0  # per file
# Reported by readers when FFmpeg asks for too much memory
_REFUSED = "MemoryError: reading it takes more memory than a reader may use"
_UNEXPECTED = re.compile(r"(Traceback|\w+(Error|Exception|Interrupt|Warning)\b:)")
_EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63,
             2**64 - 1, 2**64 - 8)  # fmt: skip
# Marks of headers, and important fields inside them
_MARKS = re.compile(
    rb"ftyp|moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|hdlr|minf|stbl|stsd|avc1|avcC|stts|ctts|stss|"
    rb"stsc|stsz|stco|mdat|udta|\x1aE\xdf\xa3|\x18S\x80g|\x15I\xa9f|\x16T\xaek|\x1fC\xb6u|"
    rb"\x1cS\xbbk|RIFF|avih|strl|strh|strf|LIST|idx1|movi|GIF89a|\x21\xf9|\x2c|\x47[\x40\x41\x50]|"
    rb"\"dtype\"|\"shape\"|\"data_offsets\"|PK\x03\x04|PK\x01\x02|PK\x05\x06"
)


@dataclass
class Found:
    """Result of a phase."""

    name: str
    files: int = 0
    seconds: float = 0.0
    peak_mib: float = 0.0
    unexpected: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    readable: int = 0

    def note(self, path: str, reason: str) -> None:
        """Count a file by its reason; "" means readable."""
        self.files += 1
        line = f"{path}: {reason}"
        if reason.startswith(_REFUSED):
            pass  # the file claims too much; a row, since peak memory is checked below
        elif "took longer" in reason or "no result within" in reason:
            self.hangs.append(line)
        elif "crashed" in reason or "its reader" in reason or "its process" in reason:
            self.crashes.append(line)
        elif _UNEXPECTED.match(reason):
            self.unexpected.append(line)
        self.readable += not reason


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """The file with one to four faults, mostly in its headers."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        marks = [match.start() for match in _MARKS.finditer(bytes(changed))]
        place = int(rng.integers(len(changed) + 1))
        if marks and rng.random() < 0.8:
            place = int(rng.choice(marks)) + int(rng.integers(-8, 40))
        place = min(max(place, 0), len(changed))
        length = int(2 ** rng.uniform(0, 9))
        match rng.integers(7):
            case 0:  # flipped bits
                for each in range(place, min(place + int(rng.integers(1, 9)), len(changed))):
                    changed[each] ^= 1 << int(rng.integers(8))
            case 1 | 2:  # an extreme integer
                width = int(rng.choice([1, 2, 4, 8]))
                value = int(rng.choice(np.array(_EXTREMES, dtype=object))) % 2 ** (8 * width)
                order = "big" if rng.random() < 0.5 else "little"
                changed[place : place + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
            case 3:  # truncated
                if rng.random() < 0.3:
                    del changed[place:]
                else:
                    del changed[place : place + length]
            case 4:  # two pieces swapped
                second = int(rng.integers(len(changed) + 1))
                one, two = (bytes(changed[p : p + length]) for p in (place, second))
                changed[place : place + length] = two
                changed[second : second + length] = one
            case 5:  # a piece repeated
                piece = bytes(changed[place : place + length])
                changed[place:place] = piece * int(rng.integers(1, 20))
            case 6:  # a piece of another file format
                start = int(rng.integers(len(other)))
                changed[place : place + length] = other[start : start + length]
        if not changed:
            changed = bytearray(b"\0")
    return bytes(changed)


def _write_sources(folder: Path) -> dict[str, bytes]:
    """Write a small file of each format."""
    found = {}
    for suffix, codec in _CODECS.items():
        path = folder / f"source.{suffix}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=10)
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = 32, 48
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            for number in range(12):
                pixels = np.full((32, 48, 3), 20 * number, dtype=np.uint8)
                pixels[8:16, 2 * number : 2 * number + 8] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        found[suffix] = path.read_bytes()
    return found


def _write_weights(folder: Path) -> dict[str, bytes]:
    state = {f"blocks.{k}.attn.qkv.weight": torch.ones(12, 4) for k in range(4)}
    state["patch_embed.proj.weight"] = torch.zeros(4, 3, 2, 2)
    save_file(state, folder / "source.safetensors", metadata={"format": "pt"})
    torch.save({"model": state, "epoch": 3}, folder / "source.pt")
    return {suffix: (folder / f"source.{suffix}").read_bytes() for suffix in _WEIGHTS}


def _write_mutants(folder: Path, sources: dict[str, bytes], number: int, seed: int) -> list[str]:
    """Write damaged files, cycling through formats; file k depends only on seed and k."""
    suffixes, names = list(sources), []
    for k in range(number):
        rng = np.random.default_rng((seed, k))
        suffix = suffixes[k % len(suffixes)]
        other = sources[suffixes[int(rng.integers(len(suffixes)))]]
        names.append(f"{k:05d}.{suffix}")
        (folder / names[-1]).write_bytes(mutated(sources[suffix], other, rng))
    return names


def _check(folder: Path, workers: int) -> Iterator[tuple[str, str]]:
    """Run `hpm-video data check`: the fault of each file."""
    command = [sys.executable, "-m", "hpm_video", "data", "check", str(folder / "list.csv")]
    options = ["--num-workers", str(workers), "--decode-timeout-s", f"{_LIMIT_S:g}"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode not in (0, 1) or "Traceback" in done.stderr + done.stdout:
        yield "the command", f"Traceback: exit code {done.returncode}: {done.stderr[-3000:]}"
        return
    with (folder / "list.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield row["path"], row["reason"] if row["status"] == "bad" else ""


def _load(folder: Path, workers: int, decoder: str) -> Iterator[tuple[str, str]]:
    """Load clips, with and without the frame tables of the check."""

    data = DataConfig(num_frames=4, frame_stride=2, crop_size=32, decoder=decoder)  # type: ignore[arg-type]
    checked, bare = folder / "list.csv", folder / "paths.csv"
    with checked.open(newline="", encoding="utf-8") as file:  # the loader would skip bad ones
        bare.write_text("path\n" + "".join(f"{row['path']}\n" for row in csv.DictReader(file)))
    for index in (index_beside(checked).read_bytes(), None):
        index_beside(bare).unlink(missing_ok=True)
        if index is not None:
            index_beside(bare).write_bytes(index)
        manifest = read_manifest(bare)
        dataset = ViewDataset(manifest, data, num_clips=2, num_crops=1)
        for batch in view_loader(
            dataset, batch_size=4, num_workers=workers, rank=0, world_size=1, timeout_s=_LIMIT_S
        ):
            for place, error in zip(batch.indices.tolist(), batch.errors, strict=True):
                yield manifest.path(place), error or ""


def inspect(path: str) -> str:
    """Run `hpm-video weights inspect` in a subprocess; returns an unexpected error."""

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = hpm_video(["weights", "inspect", path])
    except Exception:  # noqa: BLE001 - which is what is looked for
        return f"Traceback: {traceback.format_exc()[-1500:]}"
    return "" if code == 0 else said.getvalue()


def _inspect_all(folder: Path, workers: int) -> Iterator[tuple[str, str]]:

    paths = sorted(str(p) for p in folder.iterdir() if p.suffix[1:] in _WEIGHTS)
    outcomes = run_killable(inspect, paths, num_workers=workers, timeout_s=_LIMIT_S, limits=WRITING)
    for path, outcome in outcomes:
        yield path, outcome if isinstance(outcome, str) else str(outcome)


def _run_phase(name: str, folder: Path, workers: int) -> Found:
    found, start = Found(name), time.perf_counter()
    phases = {"check": _check, "weights": _inspect_all}
    results = (
        phases[name](folder, workers)
        if name in phases
        else _load(folder, workers, name.removeprefix("loader "))
    )
    for path, reason in results:
        found.note(os.path.basename(path), reason)
    found.seconds = time.perf_counter() - start
    return found


def _phase_apart(name: str, folder: Path, workers: int) -> Found:
    """Run a phase in a subprocess, to know the peak memory of its descendants."""
    command = [sys.executable, __file__, "--phase", name, "--folder", str(folder)]
    with subprocess.Popen(
        [*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return Found(
            name, unexpected=[f"the phase itself ended with exit code {process.returncode}"]
        )
    found = Found(**json.loads(output.splitlines()[-1]))
    found.peak_mib = used.ru_maxrss / 1024
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in (("videos", 2400), ("weights", 300), ("seed", 0), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", help="folder in which to keep the files (default: temporary)")
    parser.add_argument("--decoders", nargs="+", default=["pyav", "decord", "torchcodec"])
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.phase:
        found = _run_phase(asked.phase, Path(asked.folder), asked.workers)
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        return 0
    with contextlib.ExitStack() as stack:
        name = asked.folder or stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        names = _write_mutants(folder, _write_sources(folder), asked.videos, asked.seed)
        _write_mutants(folder, _write_weights(folder), asked.weights, asked.seed)
        for source in folder.glob("source.*"):
            source.unlink()
        (folder / "list.csv").write_text("path\n" + "\n".join(names) + "\n", encoding="utf-8")
        phases = ["check", *(f"loader {decoder}" for decoder in asked.decoders), "weights"]
        return _report([_phase_apart(phase, folder, asked.workers) for phase in phases])


def _report(phases: list[Found]) -> int:
    heads = ("phase", "files", "readable", "unexpected", "hangs", "crashes", "peak MiB", "s")
    lines = [heads]
    for found in phases:
        numbers = (found.files, found.readable, *map(len, (found.unexpected, found.hangs)))
        lines.append(
            (found.name, *map(str, (*numbers, len(found.crashes), round(found.peak_mib))),
             f"{found.seconds:.0f}")
        )  # fmt: skip
    for line in lines:
        sys.stdout.write("  ".join(f"{cell:>10}" for cell in line) + "\n")
    wrong = False
    for found in phases:
        for kind in ("unexpected", "hangs", "crashes"):
            reasons: list[str] = getattr(found, kind)
            alike = Counter(re.sub(r"\d+", "#", reason.split(": ", 1)[-1]) for reason in reasons)
            for text, number in alike.most_common(20):
                example = next(r for r in reasons if re.sub(r"\d+", "#", r).endswith(text))
                sys.stdout.write(f"{found.name}: {kind}, {number} x, e.g. {example}\n")
            wrong |= bool(reasons)
        if found.peak_mib > _MOST_MIB:
            sys.stdout.write(f"{found.name}: a process used more than {_MOST_MIB} MiB\n")
            wrong = True
    return int(wrong)


if __name__ == "__main__":
    import fuzz_headers  # workers find the functions under this module name

    sys.exit(fuzz_headers.main())
