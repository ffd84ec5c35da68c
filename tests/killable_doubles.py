"""Stand-ins for work on a video that goes wrong or takes its time, for processes of their own.

What they do is told by the name of the file: such processes see nothing of a test but its files.
"""

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path

from hpm_video.data.prepare.check import Inspect, Video
from hpm_video.data.prepare.transcode_video import Transcode, Work, part_name
from hpm_video.data.prepare.verdict import Verdict


def misbehave(path: str) -> None:
    """Hang in native code that holds the interpreter's lock, crash, or just be slow; and count."""
    name = os.path.basename(path)
    with open(os.path.join(os.path.dirname(path), "tried.txt"), "a", encoding="utf-8") as file:
        file.write(f"{name}\n")
    if "hangs" in name:
        ctypes.PyDLL(None).sleep(1000)
    elif "crashes" in name:
        os.abort()
    elif "slow" in name:
        time.sleep(0.15)


@dataclass(frozen=True)
class InspectDouble(Inspect):
    def __call__(self, video: Video) -> Verdict:
        misbehave(video[0])
        return super().__call__(video)


@dataclass(frozen=True)
class TranscodeDouble(Transcode):
    def __call__(self, work: Work) -> Verdict:
        name = os.path.basename(work.source)
        if "hangs" in name:  # with its file half written
            os.makedirs(os.path.dirname(work.target), exist_ok=True)
            Path(part_name(work.target)).write_bytes(b"half")
        if "full" in name:
            while not list(Path(work.target).parent.glob(".*.part")):
                time.sleep(0.01)
            raise ValueError(f"{work.target} cannot be written: No space left on device")
        misbehave(work.source)
        return super().__call__(work)


def main() -> None:
    """The command line with these in place of the real ones, to be run as a script and killed."""
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    import killable_doubles

    from hpm_video.cli.main import main
    from hpm_video.data.prepare import check, transcode
    from hpm_video.data.video.limits import WRITING

    check.READING = WRITING
    check.Inspect = killable_doubles.InspectDouble  # type: ignore[misc]
    transcode.Transcode = killable_doubles.TranscodeDouble  # type: ignore[misc]
    sys.exit(main(["data", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
