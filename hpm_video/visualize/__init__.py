"""Pictures and pages of what a pre-training checkpoint finds hard; see docs/visualize.md."""

from hpm_video.data.loading.clip import read_clip
from hpm_video.method.diagnostics import shares
from hpm_video.visualize.figures import (
    GREY,
    Floats,
    Row,
    enlarge,
    figure,
    frame_names,
    heat,
    outline,
    picture,
)
from hpm_video.visualize.hard_tubes import HardTubes, ask
from hpm_video.visualize.videos import Result, visualize, watch, write_film
from hpm_video.visualize.windows import View

__all__ = ["GREY", "Floats", "HardTubes", "Result", "Row", "View", "ask", "enlarge", "figure",
           "frame_names", "heat", "outline", "picture", "read_clip", "shares", "visualize",
           "watch", "write_film"]  # fmt: skip
