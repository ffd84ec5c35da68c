"""The token grid of a clip, and the extent of one token. Needs no PyTorch."""

from dataclasses import dataclass

from hpm_video.config.limits import multiple


@dataclass(frozen=True)
class TokenGrid:
    """Number of tokens of a clip along (time, height, width), e.g. (8, 14, 14)."""

    time: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name in ("time", "height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"grid {name} ({getattr(self, name)}) must be at least 1")

    def __str__(self) -> str:
        return f"{self.time} x {self.height} x {self.width} tokens"

    @property
    def num_tokens(self) -> int:
        return self.time * self.height * self.width

    @property
    def num_tubes(self) -> int:
        """Number of tubes, that is, of (row, column) positions."""
        return self.height * self.width


@dataclass(frozen=True)
class TokenShape:
    """Extent of one token, tubelet_size frames x patch_size x patch_size pixels, e.g. (2, 16)."""

    tubelet_size: int
    patch_size: int

    @property
    def num_values(self) -> int:
        """Pixel values of a token, P."""
        return self.tubelet_size * self.patch_size**2 * 3

    def grid(self, *, num_frames: int, crop_size: int) -> TokenGrid:
        """Token grid of a square clip; raises ValueError if it does not divide evenly."""
        multiple("data.num_frames", num_frames, "model.tubelet_size", self.tubelet_size)
        multiple("data.crop_size", crop_size, "model.patch_size", self.patch_size)
        side = crop_size // self.patch_size
        return TokenGrid(num_frames // self.tubelet_size, side, side)

    def __str__(self) -> str:
        return f"{self.tubelet_size} x {self.patch_size} x {self.patch_size} pixels"
