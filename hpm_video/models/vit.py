"""The vision transformer: position table, blocks, and the encoder of visible tokens.

As in VideoMAE (arXiv 2203.12602): pre-norm blocks, LayerNorm eps 1e-6, exact GELU, biases on q and
v but none on k, no class token, fixed sinusoid positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpm_video.models.attention import attention
from hpm_video.models.grid import TokenShape
from hpm_video.models.pixels import standardize
from hpm_video.models.projections import apply_linear, gelu_of_linear, heads_of_linear
from hpm_video.models.resample import Tokens, interpolate_tokens
from hpm_video.models.residual import add_and_norm
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.weight_casts import cast_together

LayerNorm = partial(nn.LayerNorm, eps=1e-6)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def position_table(grid: TokenGrid, width: int, *, trained_grid: TokenGrid | None = None) -> Tensor:
    """Sinusoid positions (N, width): sin on even, cos on odd columns of pos / 10000^(2[j/2]/width).

    ``pos`` is the token's flat index in the grid that the weights were trained on. For another grid
    the trained table is interpolated along time, rows and columns; a new table would give tokens
    positions that the weights have never seen.
    """
    trained = trained_grid or grid
    position = torch.arange(trained.num_tokens, dtype=torch.float64)[:, None]
    column = torch.arange(width)
    angle = position / 10000 ** (2 * (column // 2).double() / width)
    table = torch.where(column % 2 == 0, angle.sin(), angle.cos())
    table = interpolate_tokens(table, trained, grid)
    return table.float().contiguous()


class Attention(nn.Module):
    """Multi-head self-attention; q and v have a bias, k has none."""

    k_bias: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        assert width % heads == 0, f"width {width} must be a multiple of {heads} heads"
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        # Concatenated with the other two biases for one matrix product
        self.register_buffer("k_bias", torch.zeros(width), persistent=False)
        self.proj = nn.Linear(width, width)
        # Replaceable, for example to inspect the attention weights
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = attention

    def weights(self) -> tuple[Tensor, ...]:
        """What `forward` multiplies with, in its order."""
        biases = self.q_bias, self.k_bias, self.v_bias
        return self.qkv.weight, *biases, self.proj.weight, self.proj.bias

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """(B, N, D) -> (B, N, D), with `weights` or casts of them."""
        of_qkv, *biases, of_proj, proj_bias = weights
        q, k, v = heads_of_linear(self.qkv, x, of_qkv, torch.cat(biases), self.heads)
        x = self.attend(q, k, v).transpose(1, 2).flatten(2)
        return apply_linear(self.proj, x, of_proj, proj_bias)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def weights(self) -> tuple[Tensor, ...]:
        """What `forward` multiplies with, in its order."""
        return self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """(B, N, D) -> (B, N, D), with `weights` or casts of them."""
        of_fc1, fc1_bias, of_fc2, fc2_bias = weights
        inner = gelu_of_linear(self.fc1, x, of_fc1, fc1_bias)
        return apply_linear(self.fc2, inner, of_fc2, fc2_bias)


class Block(nn.Module):
    """Pre-norm attention and MLP, each with stochastic depth.

    The block does not add the MLP's branch to the residual stream: the norm that follows does so in
    the same kernel, see `add_and_norm`.
    """

    # Activation checkpointing: keep only the input and repeat the forward pass in the backward
    # pass. Results are identical, stochastic depth included.
    recompute = False

    def __init__(self, width: int, heads: int, *, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, round(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The stream x (B, N, D), and a branch (B, N, D) still to be added to it -> the same."""
        if self.recompute and torch.is_grad_enabled():
            result: tuple[Tensor, Tensor] = checkpoint(self._run, x, branch, use_reentrant=False)
            return result
        return self._run(x, branch)

    def _run(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        of_attention = self.attn.weights()
        weights = cast_together([*of_attention, *self.mlp.weights()])
        num = len(of_attention)
        x, normed = add_and_norm(x, branch, self.norm1)
        branch = self.drop_path(self.attn(normed, weights[:num]))
        x, normed = add_and_norm(x, branch, self.norm2)
        return x, self.drop_path(self.mlp(normed, weights[num:]))


def make_blocks(
    depth: int, width: int, heads: int, *, mlp_ratio: float, drop_path: float = 0.0
) -> nn.ModuleList:
    """``depth`` blocks whose stochastic depth rises linearly from 0 to ``drop_path``."""
    rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
    return nn.ModuleList(Block(width, heads, mlp_ratio=mlp_ratio, drop_path=rate) for rate in rates)


def run_blocks(
    blocks: nn.ModuleList, x: Tensor, norm: nn.Module, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Tokens (B, N, D) through blocks and a norm -> (B, N, D). ``dtype`` as in `add_and_norm`."""
    branch = None
    for block in blocks:
        x, branch = block(x, branch)
    return finish(x, branch, norm, dtype=dtype)


def finish(
    x: Tensor, branch: Tensor | None, norm: nn.Module, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Norm of a block's output: the residual stream x (B, N, D) plus its pending branch."""
    if isinstance(norm, nn.LayerNorm):
        return add_and_norm(x, branch, norm, dtype=dtype)[1]
    x = x if branch is None else x + branch
    return norm(x)


@dataclass(frozen=True)
class ViTSize:
    """Size of an encoder.

    A token has tubelet_size frames of patch_size x patch_size pixels. ``mlp_ratio``: hidden width
    of the MLPs divided by ``width``. ``drop_path``: stochastic depth of the last block.
    ``stored_positions``: the positions are weights, for example learnt by an image model, instead
    of `position_table`'s.
    """

    tubelet_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    stored_positions: bool = False


class Encoder(nn.Module):
    """Vision transformer on selected tokens of a clip.

    The patch embedding is the paper's Conv3d (kernel = stride) as a matrix product, so masked
    tokens are never read.
    """

    mean: Tensor
    std: Tensor
    positions: Tensor

    def __init__(
        self,
        grid: TokenGrid,
        size: ViTSize,
        *,
        final_norm: bool = True,
        trained_grid: TokenGrid | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.tokens = Tokens(grid, TokenShape(size.tubelet_size, size.patch_size))
        self.width = size.width
        self.embed = nn.Linear(self.tokens.shape.num_values, size.width)
        self.blocks = make_blocks(
            size.depth, size.width, size.heads, mlp_ratio=size.mlp_ratio, drop_path=size.drop_path
        )
        self.blocks.apply(init_linear)
        self.norm: nn.Module = LayerNorm(size.width) if final_norm else nn.Identity()
        positions = position_table(grid, size.width, trained_grid=trained_grid)
        self.register_buffer("positions", positions, persistent=size.stored_positions)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

    def forward(self, patches: Tensor, index: Tensor | None = None) -> Tensor:
        """Encode patches (B, V, P), floats in [0, 1] or bytes, at token index (B, V) -> (B, V, D).

        Without an index the patches are all N tokens in raster order.
        """
        x = self.embedded(patches, index)
        return run_blocks(self.blocks, x, self.norm, dtype=torch.float32)

    def embedded(self, patches: Tensor, index: Tensor | None = None) -> Tensor:
        """Input of the first block for patches as in `forward`: (B, V, P) -> (B, V, D)."""
        x = self.embed(standardize(patches, self.mean, self.std))
        return x + (self.positions if index is None else self.positions[index])

    def at_layers(self, patches: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Encode all N tokens (B, N, P) -> outputs of these blocks after the final norm.

        One (B, N, D) float32 per layer; 0 is the first block, -1 the last, whose output is that of
        `forward`.
        """
        x = self.embedded(patches)
        depth, found = len(self.blocks), {}
        numbers = [layer % depth for layer in layers]
        branch = None
        for number, block in enumerate(self.blocks[: max(numbers) + 1]):
            x, branch = block(x, branch)
            if number in numbers:
                found[number] = finish(x, branch, self.norm, dtype=torch.float32)
        return [found[number] for number in numbers]


def init_linear(module: nn.Module) -> None:
    """VideoMAE's initialisation inside encoder and decoder: Xavier-uniform weights, zero bias.

    The patch embedding and the projection to decoder width keep PyTorch's default.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
