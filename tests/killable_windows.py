"""A stand-in for reading windows of a video, apart from the others, which need no PyTorch."""

from pathlib import Path

from killable_doubles import misbehave

from hpm_video.data.loading.windows import WindowReader


class WindowDouble(WindowReader):
    """Reads the first seven windows of any video."""

    def __call__(self, first: int | None):  # type: ignore[no-untyped-def]
        tried = Path(self.path).with_name("tried.txt")
        if first is not None and first >= 7 and not ("once" in self.path and tried.exists()):
            misbehave(self.path)
        return super().__call__(first)
