"""Seconds until a command answers that trains nothing: help, typing errors, refused lists.

    python tools/measure/startup.py [--rounds 5]

Runs each command in a new process, in turns, and prints medians and exit codes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_REFUSED = "missing.mp4 0\n" * 1000


def commands(folder: Path) -> dict[str, list[str]]:
    """What is timed, and its arguments; ``folder`` gets the list that is refused."""
    videos = folder / "list.csv"
    videos.write_text(_REFUSED)
    pretrain = ["pretrain", "own_videos", f"run.output_dir={folder / 'run'}"]
    return {
        "--help": ["--help"],
        "pretrain --help": ["pretrain", "--help"],
        "mistyped command": ["pretrian"],
        "mistyped setting": [*pretrain, f"data.manifest={videos}", "masking.mask_rato=0.9"],
        "refused list (1,000 missing videos)": [*pretrain, f"data.manifest={videos}"],
    }


def main() -> None:
    """Print a line per command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        timed = commands(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        codes = dict.fromkeys(timed, 0)
        for _ in range(rounds):
            for name, words in timed.items():
                start = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-m", "hpm_video", *words], check=False, capture_output=True
                )
                seconds[name].append(time.perf_counter() - start)
                codes[name] = done.returncode
    for name, values in seconds.items():
        median = statistics.median(values)
        sys.stdout.write(f"{name:36} {median:.2f} s   exit code {codes[name]}\n")


if __name__ == "__main__":
    main()
