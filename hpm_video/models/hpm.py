"""The pre-training model: VideoMAE, optionally with a predictor of its own loss."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpm_video.config.values import PredictorInput, values_of
from hpm_video.models.decoder import Decoder, DecoderInput
from hpm_video.models.pixels import gather_patches
from hpm_video.models.precision import no_autocast
from hpm_video.models.tokens import TokenGrid, as_patches, gather_tokens, split_mask
from hpm_video.models.vit import Encoder, ViTSize


@dataclass(frozen=True)
class HPMOutput:
    """Output of one forward pass. Token indices are ascending.

    reconstruction (B, M, P): pixels or normalised pixels of the masked tokens; for feature targets,
        P is the number of features.
    predicted_loss (B, N): predicted reconstruction loss, meaningful only by its order within a
        clip. NaN where nothing was predicted. None for plain VideoMAE.
    pixel_predicted_loss (B, N): the same from the second predictor, which reads pixels; or None.
    masked (B, M), visible (B, V): index of the reconstructed and of the encoded tokens. Decoder
        masking leaves some masked tokens out; they are in neither.
    ranked (B, K): index of the masked tokens whose loss is predicted; pixel_ranked (B, K): the same
        for the second predictor.
    encoded (B, V, D): the encoder's output for the visible tokens.
    """

    reconstruction: Tensor
    predicted_loss: Tensor | None
    masked: Tensor
    visible: Tensor
    ranked: Tensor
    encoded: Tensor
    pixel_predicted_loss: Tensor | None = None
    pixel_ranked: Tensor | None = None


class EncodedPredictor(Decoder):
    """The paper's loss predictor: a second decoder on the encoded visible tokens.

    It predicts the loss of a masked token from the features of other tokens, and its gradient
    reaches the encoder (HPM, arXiv 2304.05919).
    """

    def __init__(self, *, width: int, depth: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(width=width, depth=depth, heads=heads, outputs=1, mlp_ratio=mlp_ratio)

    def forward(self, sequence: Tensor, *, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """Decoder sequence (B, S, width) -> predicted loss of each token (B, S) float32."""
        return _loss_head(self.head, super().forward(sequence, dtype=dtype))


class PixelPredictor(nn.Module):
    """Our loss predictor that reads pixels: a small separate transformer.

    It may see the masked tokens themselves because it reconstructs nothing, and a token's own
    pixels show how hard it is. It sends no gradient to the encoder and works on any share of the
    tokens.
    """

    def __init__(
        self, grid: TokenGrid, size: ViTSize, *, trained_grid: TokenGrid | None = None
    ) -> None:
        super().__init__()
        self.encoder = Encoder(grid, size, trained_grid=trained_grid)
        self.head = nn.Linear(size.width, 1)

    def forward(self, patches: Tensor, index: Tensor) -> Tensor:
        """Patches (B, K, P), as an `Encoder` takes them, at index (B, K) -> predicted loss (B, K)
        float32."""
        return _loss_head(self.head, self.encoder(patches, index))


def _start_small(head: nn.Linear, num_values: int) -> None:
    """Initialise a head with one output so that predictions start near 0 and the ranking loss at
    ln 2.

    The published head has one Xavier-uniform output per pixel value and averages them; this is the
    standard deviation of that average (HPM, arXiv 2304.05919).
    """
    of_one = 2 / (head.in_features + num_values)
    nn.init.normal_(head.weight, std=(of_one / num_values) ** 0.5)
    nn.init.zeros_(head.bias)


def _loss_head(head: nn.Linear, features: Tensor) -> Tensor:
    # bfloat16 would turn close predictions into ties
    with no_autocast(features):
        loss: Tensor = head(features.float())
    return loss.squeeze(-1)


class HPM(nn.Module):
    """Encoder of visible tokens, decoder that reconstructs masked ones, predictor of their loss.

    Args:
        predictor_input: ``encoded`` (`EncodedPredictor`) or ``pixels`` (`PixelPredictor`). ``both``
            has two: the encoded one trains the encoder, `pixel_predictor` chooses masks. None has
            no predictor: plain VideoMAE.
        outputs: reconstructed values per token, if not its P pixel values.
        trained_grid: the grid that the weights were trained on, if it is another one.
    """

    def __init__(
        self,
        grid: TokenGrid,
        size: ViTSize,
        *,
        decoder_width: int,
        decoder_heads: int,
        decoder_depth: int,
        decoder_mlp_ratio: float = 4.0,
        predictor_input: PredictorInput | None,
        predictor_depth: int = 1,
        outputs: int | None = None,
        trained_grid: TokenGrid | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.trained_grid = grid, trained_grid or grid
        self.encoder = Encoder(grid, size, trained_grid=trained_grid)
        self.decoder_input = DecoderInput(
            grid, encoder_width=size.width, width=decoder_width, trained_grid=trained_grid
        )
        self.reconstructor = Decoder(
            width=decoder_width,
            depth=decoder_depth,
            heads=decoder_heads,
            outputs=outputs or self.encoder.tokens.shape.num_values,
            mlp_ratio=decoder_mlp_ratio,
        )
        self.predictor: EncodedPredictor | PixelPredictor | None = None
        self.pixel_predictor: PixelPredictor | None = None
        if predictor_input not in (None, *values_of(PredictorInput)):
            words = ", ".join(values_of(PredictorInput))
            raise ValueError(f"model.predictor_input ({predictor_input}) must be one of {words}")
        if predictor_input in ("encoded", "both"):
            self.predictor = EncodedPredictor(
                width=decoder_width,
                depth=predictor_depth,
                heads=decoder_heads,
                mlp_ratio=decoder_mlp_ratio,
            )
        if predictor_input in ("pixels", "both"):
            shape = (size.tubelet_size, size.patch_size)
            small = ViTSize(*shape, decoder_width, depth=predictor_depth, heads=decoder_heads)
            of_pixels = PixelPredictor(grid, small, trained_grid=trained_grid)
            if self.predictor is None:
                self.predictor = of_pixels
            else:
                self.pixel_predictor = of_pixels
        self.start_heads_small()

    def start_heads_small(self) -> None:
        """Initialise the predictors' heads so that they predict losses near 0."""
        for predictor in (self.predictor, self.pixel_predictor):
            if predictor is not None:
                _start_small(predictor.head, self.encoder.tokens.shape.num_values)

    def forward(
        self,
        clips: Tensor,
        mask: Tensor,
        num_visible: int | None = None,
        kept: Tensor | None = None,
        ranked: Tensor | None = None,
        *,
        remasked: Tensor | None = None,
        predicts: bool = True,
    ) -> HPMOutput:
        """Encode the visible tokens, reconstruct the masked ones and predict their loss.

        Args:
            clips: (B, 3, T, H, W), or their patches (B, N, P); floats in [0, 1] or bytes.
            mask: (B, N), True = masked; the same number in every row.
            num_visible: number of visible tokens per row, if known; it avoids a synchronisation,
                see `split_mask`.
            kept: (B, K) ascending index of the masked tokens to reconstruct, see
                `reconstructed_tokens`; all by default.
            ranked: (B, K) ascending index of the tokens whose loss a `PixelPredictor` predicts; all
                reconstructed ones by default.
            remasked: (B, R) index of visible tokens that decoders get as mask tokens as well; only
                with ``kept``.
            predicts: False skips the predictors.
        """
        visible, masked = split_mask(mask, num_visible)
        patches = as_patches(clips, self.grid)
        encoded = self.encoder(gather_patches(patches, visible), visible)
        sequence = self.decoder_input(encoded, visible, kept, remasked)
        features = self.reconstructor(sequence)
        if kept is None:
            features = gather_tokens(features, masked)
        else:
            masked, features = kept, features[:, : kept.shape[1]]
        ranked = masked if ranked is None else ranked

        def from_pixels(predictor: PixelPredictor) -> Tensor:
            return _at(ranked, predictor(gather_patches(patches, ranked), ranked), mask)

        predicted = of_pixels = None
        main, second = (self.predictor, self.pixel_predictor) if predicts else (None, None)
        if isinstance(main, EncodedPredictor):
            predicted = main(sequence)
            if kept is not None:  # the first K + V of (B, K + V + R) -> (B, N)
                places = torch.cat([kept, visible], dim=1)
                predicted = _at(places, predicted[:, : places.shape[1]], mask)
        elif main is not None:
            predicted = from_pixels(main)
        if second is not None:
            of_pixels = from_pixels(second)
        return HPMOutput(
            reconstruction=self.reconstructor.head(features),
            predicted_loss=predicted,
            masked=masked,
            visible=visible,
            ranked=ranked if isinstance(self.predictor, PixelPredictor) else masked,
            encoded=encoded,
            pixel_predicted_loss=of_pixels,
            pixel_ranked=None if of_pixels is None else ranked,
        )


def _at(index: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Scatter values (B, K) to index (B, K), NaN elsewhere -> (B, N), the shape of mask."""
    return values.new_full(mask.shape, torch.nan).scatter(1, index, values)
