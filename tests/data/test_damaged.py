"""Freshly damaged files: no wrong frame before the damage, none claimed that is not there."""

import damaged_videos

from hpm_video.data.video.frames import missing


def test_damaged_files_with_every_reader() -> None:
    """`python tests/damaged_videos.py` does the same with 150 files."""
    readers = [reader for reader in damaged_videos.READERS if not missing(reader.split(",")[0])]
    counts, wrong = damaged_videos.examine(12, 1000, readers, timeout_s=120)
    assert wrong == []
    assert sum(n for (_, _, outcome), n in counts.items() if outcome != "wrong") == 12 * len(
        readers
    )
