"""Crops made on the device are those that workers make, but for rounding."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numbered_videos import Recipe, write_video
from torch.utils._python_dispatch import TorchDispatchMode

from hpm_video.cli.main import main
from hpm_video.config import AugmentConfig, DataConfig, FinetuneConfig, FinetuneDataConfig
from hpm_video.data.lists.manifest import Manifest, read_manifest, write_manifest
from hpm_video.data.loading.loader import ClipBatch, clip_batches
from hpm_video.data.samples import device_crops
from hpm_video.data.samples.device_crops import FrameReader
from hpm_video.runtime.distributed import World
from hpm_video.train.run.logs import read_records

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Videos of several shapes, with noise, of which every pixel tells."""
    folder = tmp_path_factory.mktemp("videos")
    sizes = ((64, 96), (96, 64), (120, 200), (48, 48))
    for number, size in enumerate(sizes):
        write_video(folder / f"{number}", Recipe("mp4", "libx264", 20, size))
    write_manifest(
        folder / "list.csv",
        [{"path": path.name, "label": 0} for path in sorted(folder.glob("*.mp4"))],
    )
    return read_manifest(folder / "list.csv")


def _batches(manifest: Manifest, **changes: object) -> list[ClipBatch]:
    settings = {
        "num_frames": 4, "crop_size": 40, "flip": True, "repeats": 4, "windows": 2, "batch_size": 2,
        "num_workers": 0, "decoder": "pyav", "frame_pixels": 120 * 200,
    }  # fmt: skip
    data = DataConfig(**{**settings, **changes})  # type: ignore[arg-type]
    return list(
        clip_batches(
            manifest,
            data,
            accumulation=1,
            world=World(0, 1, CPU),
            seed=3,
            start_step=0,
            num_steps=8,
        )
    )


@pytest.mark.parametrize("crop", ["multi_scale", "random_resized"])
@pytest.mark.parametrize(("num_workers", "antialias"), [(0, True), (2, True), (0, False)])
def test_they_are_those_of_workers(
    manifest: Manifest, crop: str, num_workers: int, antialias: bool
) -> None:
    how = {"crop": crop, "antialias": antialias}
    in_workers = _batches(manifest, **how)
    on_device = _batches(manifest, **how, crop_on="device", num_workers=num_workers)
    assert len(in_workers) == len(on_device) == 8
    for mine, other in zip(on_device, in_workers, strict=True):
        assert mine.indices.equal(other.indices) and mine.labels.equal(other.labels)
        a, b = mine.on(CPU), other.on(CPU)
        assert a.shape == b.shape == (8, 3, 4, 40, 40) and a.dtype == torch.float32
        # torchvision rounds to whole levels after each of the two directions
        torch.testing.assert_close(a, b, atol=2 / 255, rtol=0)
        assert (a - b).abs().mean() < 0.5 / 255


@pytest.mark.gpu
def test_a_gpu_makes_those_of_the_cpu(manifest: Manifest, gpu: torch.device) -> None:
    for batch in _batches(manifest, crop_on="device"):
        found = batch.on(gpu)
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), batch.on(CPU), atol=1e-5, rtol=0)


def test_workers_and_device_both_follow_antialias(manifest: Manifest) -> None:
    for place in ("workers", "device"):
        with_, without = (
            _batches(manifest, crop_on=place, antialias=antialias) for antialias in (True, False)
        )
        pairs = zip(with_, without, strict=True)
        differences = torch.stack([(a.on(CPU) - b.on(CPU)).abs().max() for a, b in pairs])
        assert (differences > 8 / 255).any(), place  # those of rounding are at most 2


def test_frames_that_are_scaled_down_first_follow_antialias(manifest: Manifest) -> None:
    frames = torch.arange(8).repeat(2, 8, 1)[..., None].remainder(2).mul(255).byte()
    striped = frames.expand(-1, -1, -1, 3)
    small = {a: device_crops._fit(striped, 5 * 5, antialias=a).float() for a in (True, False)}
    assert small[True].shape == small[False].shape == (2, 5, 5, 3)
    # Stripes a pixel wide: a mean over all pixels is greyer than one over the nearest two
    assert small[True].std() < 0.7 * small[False].std()


def test_larger_frames_are_scaled_down_first(manifest: Manifest) -> None:
    full = _batches(manifest, crop_on="device")
    half = _batches(manifest, crop_on="device", frame_pixels=60 * 100)
    assert half[0].clips.shape[1] < full[0].clips.shape[1] / 3
    for mine, other in zip(half, full, strict=True):
        # Boxes are whole pixels of smaller frames: nearly the same part of the picture
        assert (mine.on(CPU) - other.on(CPU)).abs().mean() < 0.1


def test_a_run_with_crops_on_the_device(
    tmp_path: Path, pretrain_arguments: Callable[..., list[str]]
) -> None:
    # Normalised targets would make much of the rounding, where a token is of one colour
    settings = ("optim.epochs=1", "run.log_every=1", "loss.normalize_targets=false")
    records = []
    for place in ("workers", "device"):
        folder = tmp_path / place
        assert main(pretrain_arguments(folder, *settings, f"data.crop_on={place}")) == 0
        records.append(read_records(folder))
    losses = [[record["reconstruction_loss"] for record in of_run] for of_run in records]
    assert losses[0] == pytest.approx(losses[1], rel=0.01) and losses[0] != losses[1]


def test_what_works_on_crops_is_refused() -> None:
    data = FinetuneDataConfig(crop_on="device")
    with pytest.raises(ValueError, match=r"data.crop_on \(device\) must be workers"):
        FinetuneConfig(data=data)
    FinetuneConfig(data=data, augment=AugmentConfig(num_operations=0, erasing=0))


class Counted(TorchDispatchMode):
    """Counts operators that work; views of what is there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or "unsafe_view" in str(func))
        return func(*args, **(kwargs or {}))


def _rows(num_videos: int, **changes: Any) -> tuple[FrameReader, torch.Tensor]:
    """What workers send of videos of noise, each of another shape."""
    settings = {
        "num_frames": 3, "crop_size": 24, "flip": True, "repeats": 4, "windows": 2,
        "frame_pixels": 70 * 90,
    }  # fmt: skip
    reader = FrameReader(DataConfig(**{**settings, **changes}))
    rows = torch.zeros(num_videos, *reader.shape, dtype=torch.uint8)
    for number, row in enumerate(rows):
        generator = np.random.default_rng(number)
        height, width = generator.integers(20, 70), generator.integers(20, 90)
        frames = generator.integers(0, 256, (9, height, width, 3), dtype=np.uint8)
        video = SimpleNamespace(num_frames=9, note=None, read=lambda k, f=frames: f[np.array(k)])
        request = SimpleNamespace(seed=(number,), open=lambda decoder, motion, v=video: v)
        reader.read(request, row)  # type: ignore[arg-type]
    return reader, rows


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("crop", ["multi_scale", "random_resized"])
def test_all_boxes_at_once_are_those_one_by_one(crop: str, antialias: bool) -> None:
    reader, rows = _rows(7, crop=crop, antialias=antialias)
    each = reader.crop(rows, rows)
    together = reader.crop(rows, rows, together=True)
    assert each.shape == together.shape == (28, 3, 3, 24, 24)
    torch.testing.assert_close(together, each, atol=1e-5, rtol=0)


@pytest.mark.parametrize("antialias", [True, False])
def test_they_are_pytorchs_resize(antialias: bool) -> None:
    reader, rows = _rows(5, frame_pixels=10**4, windows=1, antialias=antialias)
    boxes = reader._boxes(rows)
    found = reader.crop(rows, rows, together=True).unflatten(0, (5, 4))
    for row, of_video, clips in zip(rows, boxes.tolist(), found, strict=True):
        frames = row[: reader._frame_bytes].view(3, -1, 3)
        for (frame_width, top, left, height, width, flip), clip in zip(
            of_video, clips, strict=True
        ):
            whole = frames[:, : frames.shape[1] // frame_width * frame_width]
            whole = whole.unflatten(1, (-1, frame_width)).permute(0, 3, 1, 2).float() / 255
            cut = whole[:, :, top : top + height, left : left + width]
            small = F.interpolate(cut, (24, 24), mode="bilinear", antialias=antialias)
            small = small.flip(-1) if flip else small
            torch.testing.assert_close(clip, small.transpose(0, 1), atol=1e-5, rtol=0)
    assert boxes[..., 5].unique().tolist() == [0, 1]


def test_the_number_of_kernels_does_not_grow_with_the_batch() -> None:
    counts = []
    for num_videos in (2, 6):
        reader, rows = _rows(num_videos)
        with Counted() as counted:
            reader.crop(rows, rows, together=True)
        counts.append(counted.count)
    assert counts[0] == counts[1] < 65


def test_large_batches_are_cropped_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, rows = _rows(5)
    whole = reader.crop(rows, rows, together=True)
    monkeypatch.setattr(device_crops, "_CLIPS_AT_ONCE", 8)
    parts = reader.crop(rows, rows, together=True)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
