"""The fine-tuning model: encoder without its final norm, mean over tokens, norm, linear head."""

from torch import Tensor, nn

from hpm_video.config.values import Pooling
from hpm_video.models.precision import no_autocast
from hpm_video.models.tokens import TokenGrid, patchify
from hpm_video.models.vit import Encoder, LayerNorm, ViTSize


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, also under autocast."""

    def forward(self, features: Tensor) -> Tensor:
        with no_autocast(features):
            return super().forward(features.float())


class Scored(nn.Module):
    """A model whose logits become scores in [0, 1]: a softmax over classes or, with
    ``several_labels``, one sigmoid per class."""

    several_labels = False

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (..., classes) -> scores of the same shape, float32."""
        logits = logits.float()
        return logits.sigmoid() if self.several_labels else logits.softmax(dim=-1)


class Classifier(Scored):
    """Video classifier on a pre-trained encoder.

    ``pooling``: ``mean_norm`` normalises the mean over tokens; ``norm_mean`` normalises every token
    with the encoder's own norm, then averages.
    """

    def __init__(
        self,
        grid: TokenGrid,
        size: ViTSize,
        *,
        num_classes: int,
        head_dropout: float = 0.0,
        trained_grid: TokenGrid | None = None,
        pooling: Pooling = "mean_norm",
        head_float32: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.grid = grid
        is_first = pooling == "norm_mean"
        self.encoder = Encoder(grid, size, final_norm=is_first, trained_grid=trained_grid)
        self.norm: nn.Module = nn.Identity() if is_first else LayerNorm(size.width)
        self.dropout = nn.Dropout(head_dropout)
        head = (Float32Linear if head_float32 else nn.Linear)(size.width, num_classes)
        self.head: nn.Module = head
        self.encoder.blocks.apply(_init_linear)
        _init_linear(head)
        # With a head near zero, the first steps train it before they change the encoder
        head.weight.data.mul_(0.001)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [0, 1] -> logits (B, classes)."""
        return self.of_tokens(self.encoder(patchify(clips, self.grid)))

    def of_tokens(self, tokens: Tensor) -> Tensor:
        """Encoded tokens (B, N, D) -> logits (B, classes)."""
        return self.head(self.dropout(self.norm(tokens.mean(dim=1))))

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Layer groups for timm's layer-wise learning-rate decay: embedding, blocks, rest."""
        return {"stem": r"^encoder\.embed", "blocks": r"^encoder\.blocks\.(\d+)"}


def _init_linear(module: nn.Module) -> None:
    """VideoMAE's initialisation of a classifier; the patch embedding keeps PyTorch's default.

    The published code truncates at +-2, which is 100 standard deviations and has no effect.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
