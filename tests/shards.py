"""Tars as WebDataset's writers make them, for tests."""

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from videos import write_indexed_video

STEP = 30  # from the first frame of a video to that of the next


def write_tar(
    path: Path, files: Iterable[tuple[str, bytes]], *, kind: int = tarfile.DEFAULT_FORMAT
) -> Path:
    """Write a tar of (name, content), in this order."""
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def video_bytes(folder: Path, number: int, num_frames: int = 24) -> bytes:
    """An indexed video whose first frame is number * STEP."""
    path = write_indexed_video(folder / f"{number}.mp4", num_frames, first=number * STEP)
    content = path.read_bytes()
    path.unlink()
    return content


def write_shards(folder: Path, num_tars: int = 2, num_videos: int = 3) -> str:
    """Write tars of indexed videos with classes and captions; returns the pattern that names them.

    Video k of tar n begins with frame (n * num_videos + k) * STEP, and has class k.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(num_tars):
        files = []
        for k in range(num_videos):
            key = f"{n:05d}{k:04d}"
            files += [
                (f"{key}.mp4", video_bytes(folder, n * num_videos + k)),
                (f"{key}.txt", b"a caption"),
                (f"{key}.json", b'{"kind": {"name": "kind %d"}, "n": %d, "tags": [1]}' % (k, k)),
                (f"{key}.cls", str(k).encode()),
            ]
        write_tar(folder / f"train-{n:04d}.tar", files)
    return str(folder / f"train-{{0000..{num_tars - 1:04d}}}.tar")


def bad_tars(folder: Path) -> dict[str, tuple[Path, str]]:
    """Tars that must be refused, and what must be said."""
    video, other = b"v" * 3000, b"w" * 1000
    good = write_tar(folder / "good.tar", [("a.mp4", video), ("b.mp4", other)]).read_bytes()
    end = good.rindex(b"w") + 1

    def of(name: str, content: bytes) -> Path:
        path = folder / f"{name}.tar"
        path.write_bytes(content)
        return path

    def link(name: str) -> Path:
        path = folder / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo("a.mp4")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
        return path

    damaged = bytearray(good)
    damaged[good.index(b"b.mp4")] ^= 255  # the header's sum is no longer right
    zipped = folder / "train.tar.gz"
    zipped.write_bytes(gzip.compress(good))
    return {
        "cut off in a video": (of("cut", good[: end - 10]), "is cut off or damaged at byte"),
        "cut off after a video": (of("no_end", good[: end + 24]), "is cut off or damaged at byte"),
        "cut off in a header": (of("header", good[:3700]), "is cut off or damaged at byte"),
        "a damaged header": (of("damaged", bytes(damaged)), "is cut off or damaged at byte 3584"),
        "joined": (of("joined", good + good), "more follows, as in joined tars"),
        "empty": (of("empty", b""), "is empty"),
        "no tar": (of("text", b"path,label\n" * 100), "is not a tar"),
        "compressed": (of("renamed", gzip.compress(good)), "`gzip -d`"),
        "compressed, and called so": (zipped, "`gzip -d`"),
        "a link": (link("link"), "a.mp4 is a link"),
        "outside": (write_tar(folder / "up.tar", [("x/../../a.mp4", video)]), "x/../../a.mp4"),
        "absolute": (write_tar(folder / "abs.tar", [("/etc/a.mp4", video)]), "/etc/a.mp4 leads"),
        "twice": (
            write_tar(folder / "twice.tar", [("a.mp4", video), ("a.txt", b""), ("a.mp4", other)]),
            "a.mp4 occurs again",
        ),
        "apart": (
            write_tar(folder / "apart.tar", [("a.mp4", video), ("b.mp4", other), ("a.cls", b"1")]),
            "a.cls is apart from the others",
        ),
        "no videos": (write_tar(folder / "none.tar", [("a.jpg", video)]), "has no videos"),
    }
