"""The fine-tuning model: encoder without its final norm, mean over tokens, norm, linear head."""

from timm.layers import trunc_normal_
from torch import Tensor, nn

from hpm_video.models.tokens import TokenGrid, patchify
from hpm_video.models.vit import Encoder, LayerNorm, ViTSize, init_weights


class Classifier(nn.Module):
    """Video classifier on a pre-trained encoder."""

    def __init__(
        self,
        grid: TokenGrid,
        size: ViTSize,
        *,
        num_classes: int,
        head_dropout: float = 0.0,
        trained_grid: TokenGrid | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.grid = grid
        self.encoder = Encoder(grid, size, final_norm=False, trained_grid=trained_grid)
        self.norm = LayerNorm(size.width)
        self.dropout = nn.Dropout(head_dropout)
        head = nn.Linear(size.width, num_classes)
        self.head: nn.Module = head
        self.apply(init_weights)
        # A head near zero lets the first steps train it before they disturb the encoder.
        trunc_normal_(head.weight, std=0.02)
        head.weight.data.mul_(0.001)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [0, 1] -> logits (B, classes)."""
        tokens = self.encoder(patchify(clips, self.grid))
        return self.head(self.dropout(self.norm(tokens.mean(dim=1))))

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Layers for timm's layer-wise learning-rate decay: embedding, blocks, then the rest."""
        return {"stem": r"^encoder\.embed", "blocks": r"^encoder\.blocks\.(\d+)"}
