"""Videos given one by one, as a list without labels."""

import os
from array import array
from collections.abc import Sequence

import numpy as np

from hpm_video.data.lists.manifest import Manifest, Names


def list_of_videos(paths: Sequence[str]) -> Manifest:
    """A list of these paths (at least one), in order; relative to the current folder."""
    data, ends = bytearray(), array("q")
    for path in paths:
        data += os.fsencode(path)
        ends.append(len(data))
    num = len(paths)
    return Manifest(
        (Names(data, ends),),
        (os.getcwd(),),
        np.full(num, -1, dtype=np.int64),
        np.zeros(num, dtype=np.int64),
        classes=None,
        largest_label_where="",
        num_repeated=0,
    )
