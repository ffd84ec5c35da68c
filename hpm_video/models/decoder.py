"""The decoder side of a masked autoencoder: mask tokens and the decoder stack.

VideoMAE has one decoder, which reconstructs pixels. Hard patches mining adds a second one on the
same sequence, see `hpm_video.models.hpm`.
"""

import torch
from torch import Tensor, nn

from hpm_video.models.tokens import TokenGrid, scatter_tokens
from hpm_video.models.vit import LayerNorm, init_linear, make_blocks, position_table, run_blocks


class DecoderInput(nn.Module):
    """Builds the decoders' input sequence from the encoded visible tokens.

    A linear projection to decoder width without bias, a learnt mask token for every masked token,
    and positions. Decoder masking (VideoMAE V2, arXiv 2303.16727) uses only some masked tokens and,
    as published there, mask tokens for some visible ones.
    """

    positions: Tensor

    def __init__(
        self,
        grid: TokenGrid,
        *,
        encoder_width: int,
        width: int,
        trained_grid: TokenGrid | None = None,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(encoder_width, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        positions = position_table(grid, width, trained_grid=trained_grid)
        self.register_buffer("positions", positions, persistent=False)

    def forward(
        self,
        encoded: Tensor,
        visible: Tensor,
        kept: Tensor | None = None,
        remasked: Tensor | None = None,
    ) -> Tensor:
        """Encoded tokens (B, V, D) at index visible (B, V) -> sequence (B, N, decoder width).

        With an index ``kept`` (B, K) of masked tokens, the sequence has only these and, after them,
        the visible ones: (B, K + V, decoder width). With an index ``remasked`` (B, R) of visible
        tokens, mask tokens at their positions follow: (B, K + V + R, decoder width).
        """
        tokens = self.project(encoded)
        batch, num_tokens = len(tokens), len(self.positions)
        mask_token = self.mask_token.to(tokens.dtype)
        if kept is None:
            canvas = mask_token.expand(batch, num_tokens, -1)
            return scatter_tokens(canvas, visible, tokens) + self.positions
        parts, places = [mask_token.expand(*kept.shape, -1), tokens], [kept, visible]
        if remasked is not None:
            parts.append(mask_token.expand(*remasked.shape, -1))
            places.append(remasked)
        return torch.cat(parts, dim=1) + self.positions[torch.cat(places, dim=1)]


class Decoder(nn.Module):
    """Transformer blocks over the whole sequence, a norm, and a linear head."""

    def __init__(
        self, *, width: int, depth: int, heads: int, outputs: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.blocks = make_blocks(depth, width, heads, mlp_ratio=mlp_ratio)
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        self.apply(init_linear)

    def forward(self, sequence: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Sequence (B, N, width) -> normalised features (B, N, width) for `head`.

        ``dtype``: see `add_and_norm`.
        """
        return run_blocks(self.blocks, sequence, self.norm, dtype=dtype)
