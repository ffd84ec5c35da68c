"""Crops made on the device are those that workers make, but for rounding."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from numbered_videos import Recipe, write_video

from hpm_video.cli.main import main
from hpm_video.config import AugmentConfig, DataConfig, FinetuneConfig, FinetuneDataConfig
from hpm_video.data.lists.manifest import Manifest, read_manifest, write_manifest
from hpm_video.data.loading.loader import ClipBatch, clip_batches
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
@pytest.mark.parametrize("num_workers", [0, 2])
def test_they_are_those_of_workers(manifest: Manifest, crop: str, num_workers: int) -> None:
    in_workers = _batches(manifest, crop=crop)
    on_device = _batches(manifest, crop=crop, crop_on="device", num_workers=num_workers)
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
