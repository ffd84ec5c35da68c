"""The model that is pre-trained: VideoMAE with, where mining is on, a predictor of its own loss."""

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
    """What one forward pass gives.

    reconstruction (B, M, P): pixels (or normalised pixels) of the masked tokens, raster order; of a
        target of features, as many numbers as that has.
    predicted_loss (B, N): predicted reconstruction loss; only its order within a clip has a
        meaning. Not a number where no prediction was made. None for plain VideoMAE.
    pixel_predicted_loss (B, N): the same of a second predictor, which reads pixels. None without.
    masked (B, M), visible (B, V): token indices, ascending. With decoder masking the masked tokens
        that are left out, and not reconstructed, are in neither.
    ranked (B, K): those of the masked tokens whose loss is predicted, ascending. pixel_ranked
        (B, K): those of the second predictor.
    encoded (B, V, D): what the encoder made of the visible tokens.
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
    """The paper's predictor of losses: a second decoder of the encoded visible tokens.

    It judges every place from what the encoder made of other places, and its gradient reaches the
    encoder (HPM, arXiv 2304.05919).
    """

    def __init__(self, *, width: int, depth: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(width=width, depth=depth, heads=heads, outputs=1, mlp_ratio=mlp_ratio)

    def forward(self, sequence: Tensor, *, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """What decoders see (B, S, width) -> predicted loss of each token (B, S) float32."""
        return _loss_head(self.head, super().forward(sequence, dtype=dtype))


class PixelPredictor(nn.Module):
    """Our predictor of losses: a transformer of few blocks that looks at the pixels themselves.

    It may see what the encoder may not, as it reconstructs nothing: how hard a token will be to
    reconstruct shows in its own pixels. It is a network of its own, without gradient to the
    encoder, and works as well on a share of the tokens as on all.
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
    """First weights of a head that says one loss: predictions near 0, ranking loss at ln 2.

    The published head has an output for each of a token's pixel values, Xavier-uniform, and takes
    their mean. This is the deviation of that mean (HPM, arXiv 2304.05919).
    """
    of_one = 2 / (head.in_features + num_values)
    nn.init.normal_(head.weight, std=(of_one / num_values) ** 0.5)
    nn.init.zeros_(head.bias)


def _loss_head(head: nn.Linear, features: Tensor) -> Tensor:
    # bfloat16 has 8 bits: predictions close to each other would become ties.
    with no_autocast(features):
        loss: Tensor = head(features.float())
    return loss.squeeze(-1)


class HPM(nn.Module):
    """Encoder of the visible tokens, reconstructor of the masked ones, predictor of their loss.

    ``predictor_input`` says what the predictor looks at, `EncodedPredictor` or `PixelPredictor`.
    With ``both`` there are two: the encoded one teaches the encoder, and that from pixels,
    `pixel_predictor`, chooses masks. None leaves them out: that is plain VideoMAE.
    ``outputs``: numbers of the reconstruction per token, if not the P pixel values.
    ``trained_grid``: the grid whose positions the weights were trained with, if another one.
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
        """Draw first weights of the predictors' heads, which then predict losses near 0."""
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
        """Clips (B, 3, T, H, W), or their patches (B, N, P), and mask (B, N), True = masked ->
        `HPMOutput`. Pixels are floats in [0, 1] or bytes.

        ``num_visible``: tokens left visible in each row, if known (saves a sync, see `split_mask`).
        ``kept`` (B, K): index, ascending, of the masked tokens that the decoders see besides the
        visible ones (see `reconstructed_tokens` in method.masking); all of them if not given.
        ``ranked`` (B, K): index, ascending, of those whose loss a `PixelPredictor` predicts; all
        that are reconstructed if not given.
        ``remasked`` (B, R): index of visible tokens in whose places the decoders see a mask token
        too, beside what the encoder made of them; only with ``kept``.
        ``predicts``: whether predictors are asked, too.
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
            if kept is not None:  # (B, K + V), before what is remasked -> (B, N)
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
    """Values (B, K) at index (B, K), nothing elsewhere: (B, N), the shape of mask."""
    return values.new_full(mask.shape, torch.nan).scatter(1, index, values)
