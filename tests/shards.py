"""Tars as WebDataset's writers make them, for tests."""

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
