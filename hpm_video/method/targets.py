"""Reconstruction targets: pixels, or features of a model that sees the whole clip.

Notation as in `hpm_video.models.tokens`; L layers of features.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hpm_video.config import LossConfig
from hpm_video.method.losses import feature_loss, patch_loss
from hpm_video.method.teacher import Teacher
from hpm_video.models.hpm import HPMOutput
from hpm_video.models.tokens import gather_tokens

# Clips (B, 3, T, H, W), floats in [0, 1] or bytes -> features (B, N, L * D), without gradient
FrozenModel = Callable[[Tensor], Tensor]


class Features(NamedTuple):
    """Feature targets: values (B, N, L * D) of all tokens.

    encoded (B, N, D): the teacher encoder's output for the whole clip, if it was computed.
    """

    values: Tensor
    encoded: Tensor | None = None


@torch.no_grad()
def target_features(
    loss: LossConfig,
    clips: Tensor,
    patches: Tensor,
    *,
    teacher: Teacher | None,
    frozen: FrozenModel | None,
) -> Features | None:
    """Features to reconstruct, of clips (B, 3, T, H, W) and their patches; None for pixel targets.
    ``frozen``: the model of loss.target_model."""
    if loss.target == "pixels":
        return None
    if loss.target == "frozen":
        assert frozen is not None, "loss.target_model was not loaded"
        return Features(frozen(clips))
    assert teacher is not None and teacher.encoder is not None, "no teacher averages the encoder"
    layers, last = list(loss.target_layers), len(teacher.encoder.blocks) - 1
    shares_encoder = teacher.decoder_input is not None
    places = [layer % (last + 1) for layer in layers]
    asked = [*places, last] if shares_encoder and last not in places else places
    found = dict(zip(asked, teacher(patches, layers=asked), strict=True))
    values = [found[place] for place in places]
    return Features(torch.cat(values, dim=-1) if len(values) > 1 else values[0], found.get(last))


def token_losses(
    loss: LossConfig, output: HPMOutput, patches: Tensor, features: Features | None
) -> Tensor:
    """Loss of each reconstructed token, which is minimised, ranked and mined: (B, M) float32.

    ``features``: from `target_features`, for these patches (B, N, P).
    """
    if features is None:
        normalize = loss.normalize_targets
        return patch_loss(output.reconstruction, patches, output.masked, normalize=normalize)
    targets = gather_tokens(features.values, output.masked)
    return feature_loss(output.reconstruction, targets, num_layers=len(loss.target_layers))
