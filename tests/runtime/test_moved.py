"""Old import paths still give what they gave, and say where it is now."""

import importlib
import subprocess
import sys

import pytest

from hpm_video.runtime.moved import MODULES

NAMES = (  # what documentation, DESIGN's contract and hubconf.py named before the move
    "hpm_video.backbone.encoder_of",
    "hpm_video.backbone.load_backbone",
    "hpm_video.checkpoint.load_checkpoint",
    "hpm_video.data.labeled_videos.LabeledVideos",
    "hpm_video.data.toy.object_mask",
    "hpm_video.data.video.VideoReadError",
    "hpm_video.data.video.read_frames",
    "hpm_video.evaluate.load_classifier",
    "hpm_video.feature_file.read_features",
    "hpm_video.health.feature_variation",
    "hpm_video.host_memory.keep_freed_memory",
    "hpm_video.losses.ranking_loss",
    "hpm_video.masking.hard_mask",
    "hpm_video.mining.measure_mining",
    "hpm_video.models.build_model",
    "hpm_video.predictions.read_predictions",
    "hpm_video.pretrain.pretrain",
    "hpm_video.pretrained.load_pretrained",
    "hpm_video.step.pretrain_step",
    "hpm_video.timm_models.hpm_vit_tiny_patch16_224",
    "hpm_video.tokens.patchify",
    "hpm_video.weights.deployed.ClipEncoder",
)


@pytest.mark.parametrize("old", NAMES)
def test_an_old_path_gives_the_same_object_with_a_warning(old: str) -> None:
    module, _, name = old.rpartition(".")
    sys.modules.pop(module, None) if module in MODULES else None
    with pytest.warns(DeprecationWarning, match=r"^hpm_video\.[\w.]+ has moved to hpm_video\."):
        found = getattr(importlib.import_module(module), name)
    assert found.__module__ != module
    assert getattr(importlib.import_module(found.__module__), name) is found


def test_the_warning_names_the_line_that_imports() -> None:
    code = "\n\nfrom hpm_video.masking import hard_mask"
    ended = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", "-c", code],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "<string>:3: DeprecationWarning: hpm_video.masking has moved to " in ended.stderr


def test_every_old_module_exists_in_its_new_place() -> None:
    for new in MODULES.values():
        importlib.import_module(new)


def test_what_never_was_is_an_error_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hpm_video.maskings")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        importlib.import_module("hpm_video.models").nonsense  # noqa: B018
