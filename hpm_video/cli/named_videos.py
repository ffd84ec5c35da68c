"""Videos named on the command line: what is refused before PyTorch is imported, and what to type.

Lists are options (``--manifest``), and an example names a video that the given run knows.
"""

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.places import list_root
from hpm_video.data.lists.rows import is_video_name, read_videos
from hpm_video.data.lists.spelling import as_on_disk
from hpm_video.data.video.readers.frame_folder import is_image_name
from hpm_video.runtime.files import printable, shell_path
from hpm_video.weights.run_folders import run_of

_HEAD = 4096  # bytes that tell a text


def check_named(videos: Sequence[str], *, example: Callable[[], str]) -> None:
    """Raise ValueError if a list is among the videos, or if all of them are texts.

    Other files that are no videos are left to the decoder. ``example`` makes a command that works.
    """
    texts = [path for path in videos if _is_text(path)]
    if (given := next(filter(is_list, texts), None)) is not None:
        alone = ", without VIDEO" if len(videos) > 1 else ""
        raise ValueError(
            f"VIDEO ({printable(given)}) must be a video, but is a list of videos: give it as "
            f"--manifest {shell_path(given)}{alone}"
        )
    if texts and len(texts) == len(videos):
        said = f"VIDEO ({printable(texts[0])}) must be a video, but is a text"
        raise ValueError(f"{said}; for example: {example()}")


def way_from_folder(texts: Sequence[str], *, example: Callable[[], str]) -> str:
    """What to type instead of a folder without videos, which holds these texts."""
    if (given := next(filter(is_list, texts), None)) is not None:
        return f"; give the list in it: --manifest {shell_path(given)}"
    return f"; for example: {example()}"


def example_of(command: str, checkpoint: str, *more: str) -> str:
    """A command with a video of the run's lists, if these are there."""
    video = _video_of(checkpoint) or "VIDEO.mp4"
    return f"hpm-video {shlex.join([command, checkpoint, video, *more])}"


def is_list(path: str) -> bool:
    """Whether a file is a list of videos; its first row decides."""
    with suppress(OSError, ValueError):
        row = next((row for _, row in read_videos(path, Faults())), None)
        if row is not None:
            return is_video_name(row["path"]) or os.path.exists(_place(path, row["path"]))
    return False


def _is_text(path: str) -> bool:
    if is_video_name(path) or is_image_name(path) or not os.path.isfile(path):
        return False
    with suppress(OSError, UnicodeDecodeError), open(path, "rb") as file:
        head = file.read(_HEAD)
        # The last character may be cut
        return b"\0" not in head and bool(
            head[:-3].decode() if len(head) == _HEAD else head.decode()
        )
    return False


def _video_of(checkpoint: str) -> str | None:
    """The first video of the lists in a run's settings that exists."""
    if (run := run_of(Path(checkpoint))) is None:
        return None
    root = run.setting("data", "root")
    for path in (*run.lists("val_manifest"), *run.lists()):
        with suppress(OSError, ValueError):
            for _, row in read_videos(path, Faults()):
                video = _place(path, row["path"], root)
                if os.path.exists(video):
                    return video
                break
    return None


def _place(file: str, name: str, root: object = None) -> str:
    return as_on_disk(list_root(file, root if isinstance(root, str) else None), name)
