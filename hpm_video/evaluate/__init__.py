"""Evaluation of trained models: classification, probes, features and mining quality."""

from hpm_video.runtime.moved import names_moved

__getattr__ = names_moved(
    "hpm_video.evaluate",
    {
        "classifier_of": "hpm_video.weights.load",
        "evaluate": "hpm_video.evaluate.classification",
        "load_classifier": "hpm_video.weights.load",
    },
)
