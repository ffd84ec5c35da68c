"""From a video file to frames: frame selection, decoding and cropping."""

from hpm_video.runtime.moved import names_moved

__getattr__ = names_moved(
    "hpm_video.data.video",
    dict.fromkeys(("VideoReadError", "open_video", "read_frames"), "hpm_video.data.video.frames"),
)
