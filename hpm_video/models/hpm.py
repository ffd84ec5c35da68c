"""The model that is pre-trained: VideoMAE with, where mining is on, a predictor of its own loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpm_video.models.videomae import Decoder, DecoderInput
from hpm_video.models.vit import Encoder, init_weights
from hpm_video.tokens import TokenGrid, gather_tokens, patchify, split_mask


@dataclass(frozen=True)
class HPMOutput:
    """What one forward pass gives.

    reconstruction (B, M, P): pixels (or normalised pixels) of the masked tokens, raster order.
    predicted_loss (B, N): predicted reconstruction loss of every token; only its order within a
        clip has a meaning. None for plain VideoMAE.
    masked (B, M), visible (B, V): token indices, ascending.

    With decoder masking M counts the kept masked tokens, which alone are reconstructed, ``masked``
    are those, and the predicted loss of the masked tokens left out is not a number.
    """

    reconstruction: Tensor
    predicted_loss: Tensor | None
    masked: Tensor
    visible: Tensor


class HPM(nn.Module):
    """Encoder of the visible tokens, reconstructor of the masked ones, predictor of their loss.

    ``predictor_depth`` None leaves the predictor out: that is plain VideoMAE.
    """

    def __init__(
        self,
        grid: TokenGrid,
        *,
        tubelet_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        decoder_width: int,
        decoder_heads: int,
        decoder_depth: int,
        predictor_depth: int | None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.tubelet_size = tubelet_size
        self.encoder = Encoder(
            grid,
            tubelet_size=tubelet_size,
            patch_size=patch_size,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            drop_path=drop_path,
        )
        self.decoder_input = DecoderInput(grid, encoder_width=width, width=decoder_width)
        # The teacher drops its reconstructor, hence the optional type.
        self.reconstructor: Decoder | None = Decoder(
            width=decoder_width,
            depth=decoder_depth,
            heads=decoder_heads,
            outputs=tubelet_size * patch_size * patch_size * 3,
        )
        self.predictor: Decoder | None = None
        if predictor_depth is not None:
            self.predictor = Decoder(
                width=decoder_width, depth=predictor_depth, heads=decoder_heads, outputs=1
            )
        self.apply(init_weights)

    def forward(
        self,
        clips: Tensor,
        mask: Tensor,
        num_visible: int | None = None,
        kept: Tensor | None = None,
    ) -> HPMOutput:
        """Clips (B, 3, T, H, W) in [0, 1] and mask (B, N), True = masked -> `HPMOutput`.

        ``num_visible``: tokens left visible in each row, if known (saves a sync, see `split_mask`).
        ``kept`` (B, K): index, ascending, of the masked tokens that the decoders see besides the
        visible ones (see `hpm_video.masking.reconstructed_tokens`); all of them if not given.
        """
        assert self.reconstructor is not None, "a teacher does not reconstruct"
        visible, masked = split_mask(mask, num_visible)
        sequence = self.sequence(patchify(clips, self.grid), visible, kept)
        features = self.reconstructor(sequence)
        predicted = None if self.predictor is None else self.predicted_loss(sequence)
        if kept is None:
            features = gather_tokens(features, masked)
        else:
            masked, features = kept, features[:, : kept.shape[1]]
            if predicted is not None:
                # (B, K + V) -> (B, N)
                unknown = predicted.new_full(mask.shape, torch.nan)
                predicted = unknown.scatter(1, torch.cat([kept, visible], dim=1), predicted)
        return HPMOutput(
            reconstruction=self.reconstructor.head(features),
            predicted_loss=predicted,
            masked=masked,
            visible=visible,
        )

    def sequence(self, patches: Tensor, visible: Tensor, kept: Tensor | None = None) -> Tensor:
        """Encode the visible ones of patches (B, N, P) -> what both decoders see (B, N, width).

        With ``kept`` (B, K), only those masked tokens and the visible ones: (B, K + V, width).
        """
        encoded = self.encoder(gather_tokens(patches, visible), visible)
        return self.decoder_input(encoded, visible, kept)

    def predicted_loss(self, sequence: Tensor) -> Tensor:
        """Predicted loss of every token (B, S), float32, of the sequence (B, S, width)."""
        assert self.predictor is not None
        features, head = self.predictor(sequence), self.predictor.head
        # bfloat16 has 8 bits: predictions close to each other would become ties.
        # (By name: the meta device, on which costs are counted, knows no autocast.)
        with torch.autocast("cuda" if features.is_cuda else "cpu", enabled=False):
            return head(features.float()).squeeze(-1)
