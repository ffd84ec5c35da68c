"""Freshly damaged files: no wrong frame before the damage, none claimed that is not there."""

import damaged_videos

from hpm_video.data.video.frames import missing


def test_damaged_files_with_every_reader() -> None:
    """`python tests/damaged_videos.py` does the same with 150 files."""
    decoders = [d for d in ("decord", "torchcodec", "pyav") if not missing(d)]
    counts, wrong = damaged_videos.examine(12, 1000, decoders, timeout_s=120)
    assert wrong == []
    assert sum(n for (_, _, outcome), n in counts.items() if outcome != "wrong") == 12 * len(
        decoders
    )
