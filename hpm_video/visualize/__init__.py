"""What a pre-training checkpoint finds hard, to look at: see docs/visualize.md."""

from hpm_video.visualize.figures import (
    GREY,
    Floats,
    Row,
    enlarge,
    figure,
    heat,
    outline,
    shares,
)
from hpm_video.visualize.reading import read_clip
from hpm_video.visualize.videos import Result, picture, render_page, visualize

__all__ = [
    "GREY",
    "Floats",
    "Result",
    "Row",
    "enlarge",
    "figure",
    "heat",
    "outline",
    "picture",
    "read_clip",
    "render_page",
    "shares",
    "visualize",
]
