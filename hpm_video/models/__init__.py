"""Everything with weights, and how it is built from settings."""

from hpm_video.runtime.moved import names_moved

__getattr__ = names_moved(
    "hpm_video.models",
    dict.fromkeys(("HPM", "build_classifier", "build_model"), "hpm_video.models.build"),
)
