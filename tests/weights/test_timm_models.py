"""Where others meet ours: timm's registry, torch.hub, transformers' AutoModel, pytorchvideo."""

import gc
import importlib.util
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from pytorchvideo.data import LabeledVideoDataset, UniformClipSampler
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoModelForVideoClassification

import hpm_video.weights.export.timm_models
from hpm_video.cli.main import main
from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.samples.clips import ClipDataset, ClipReader
from hpm_video.data.samples.pytorchvideo import LabeledVideos
from hpm_video.data.samples.views import ViewDataset
from hpm_video.data.video.frames import VideoReadError
from hpm_video.evaluate.frozen_encoder import load_backbone
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD, position_table
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.load import load_classifier

Arguments = Callable[..., list[str]]

REPOSITORY = str(Path(__file__).parents[2])
TINY = "hpm_vit_tiny_patch16_224"


def _clips(frames: int = 4, side: int = 32, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, frames, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory, finetune_arguments: Arguments) -> Path:
    """A classifier of the size tiny, but for its depth, with weights far from their first ones."""
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    settings = ("model.size=tiny", "model.width=null", "model.heads=null", "model.depth=null")
    tokens = ("model.patch_size=16", "optim.epochs=1")
    assert main(finetune_arguments(folder, *settings, *tokens)) == 0
    state = load_checkpoint(folder)
    generator = torch.Generator().manual_seed(0)
    for value in state["model"].values():
        value.add_(torch.randn(value.shape, generator=generator), alpha=0.05)
    torch.save(state, folder.parent / "weights.pt")
    return folder.parent / "weights.pt"


def test_timm_lists_and_creates_every_size() -> None:
    names = timm.list_models("hpm_vit_*")
    assert len(names) == 6 and "hpm_vit_giant_patch14_224" in names
    assert f"{TINY}.scratch" in timm.list_models("hpm_vit_*.scratch", include_tags=True)
    model = timm.create_model(f"{TINY}.scratch", num_classes=5, num_frames=4, img_size=32)
    assert model(_clips()).shape == (2, 5)
    assert model.pretrained_cfg["input_size"] == (3, 4, 32, 32)
    tokens = model.eval().forward_features(_clips())
    assert tokens.shape == (2, 8, 192)
    assert torch.equal(model.forward_head(tokens), model(_clips()))
    model.reset_classifier(0)
    assert torch.equal(model(_clips()), model.forward_head(tokens, pre_logits=True))
    with torch.device("meta"):
        for name in names:
            assert timm.create_model(name).num_classes == 0


@torch.no_grad()
def test_timm_creates_a_checkpoint(finetuned: Path) -> None:
    ours, _, _ = load_classifier(finetuned)
    expected = ours.eval()(_clips())
    settings = {"checkpoint": str(finetuned), "num_frames": 4, "img_size": 32}
    model = timm.create_model(TINY, **settings).eval()
    assert model.num_classes == 8 and expected.std() > 0.05
    assert (model(_clips()) - expected).abs().max() < 1e-6
    new = timm.create_model(TINY, num_classes=3, **settings).eval()
    features = load_backbone(finetuned, precision="float32").backbone
    pooled = features.pooled(features.encode(_clips()))
    assert new(_clips()).shape == (2, 3)
    assert (new.forward_head(new.forward_features(_clips()), True) - pooled).abs().max() < 1e-6
    settings |= {"num_frames": 8, "img_size": 48}
    larger = timm.create_model(TINY, **settings).eval()
    assert larger(_clips(8, 48)).shape == (2, 8)
    positions = position_table(larger.grid, 192, trained_grid=TokenGrid(2, 2, 2))
    assert torch.equal(larger.encoder.positions, positions)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        (TINY, {"pretrained": True}, "no weights are published"),
        (f"{TINY}.k400", {}, r"tag \(k400\) must be scratch"),
        (TINY, {"img_size": 40}, r"data.crop_size \(40\) must be a multiple"),
    ],
)
def test_timm_refuses(name: str, settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        timm.create_model(name, **settings)


def test_timm_refuses_another_size(finetuned: Path) -> None:
    with pytest.raises(ValueError, match="must have 6 attention heads, like size small"):
        timm.create_model("hpm_vit_small_patch16_224", checkpoint=str(finetuned))


@torch.no_grad()
def test_torch_hub(finetuned: Path) -> None:
    def load(entry: str, *arguments: str, **settings: object) -> torch.nn.Module:
        return torch.hub.load(REPOSITORY, entry, *arguments, source="local", **settings)

    spec = importlib.util.spec_from_file_location("hubconf_here", f"{REPOSITORY}/hubconf.py")
    assert spec is not None and spec.loader is not None
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    # What torch.hub.list calls entry points
    entries = {n for n, v in vars(hubconf).items() if callable(v) and not n.startswith("_")}
    assert entries == {"encoder", "classifier", *timm.list_models("hpm_vit_*")}
    ours, _, _ = load_classifier(finetuned)
    assert torch.equal(load("classifier", str(finetuned))(_clips()), ours.eval()(_clips()))
    backbone = load_backbone(finetuned, precision="float32").backbone
    encoder = load("encoder", str(finetuned))
    assert torch.equal(encoder(_clips()), backbone.encode(_clips()))
    assert load("encoder", str(finetuned), crop_size=48)(_clips(side=48)).shape == (2, 18, 192)
    assert isinstance(
        load(TINY, num_classes=2), hpm_video.weights.export.timm_models.TimmClassifier
    )


@torch.no_grad()
def test_automodel_loads_an_exported_folder(
    finetuned: Path, pretrained: Path, tmp_path: Path
) -> None:
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((_clips() - mean) / std).transpose(1, 2)
    for source, name in ((finetuned, "classifier"), (pretrained, "encoder")):
        output = str(tmp_path / name)
        ask = ["weights", "export", str(source), "-o", output, "--to", "huggingface"]
        assert main([*ask, *(["--encoder"] if name == "encoder" else [])]) == 0
    theirs = AutoModelForVideoClassification.from_pretrained(tmp_path / "classifier").eval()
    ours, _, classes = load_classifier(finetuned)
    assert (theirs(pixels).logits - ours.eval()(_clips())).abs().max() < 1e-5
    assert list(theirs.config.id2label.values()) == classes
    model = AutoModel.from_pretrained(tmp_path / "encoder").eval()
    expected = load_backbone(pretrained, precision="float32").backbone.encode(_clips())
    assert (model(pixels).last_hidden_state - expected).abs().max() < 1e-5


def _clip_dataset(toy: Path, **changes: object) -> ClipDataset:
    data = DataConfig(num_frames=4, frame_stride=1, crop_size=32, **changes)
    return ClipDataset(read_manifest(toy), ClipReader(data), seed=0)


def test_clips_as_pytorchvideo_gives_them(toy: Path) -> None:
    """The same keys, types, layout and range as pytorchvideo's own data set."""
    manifest = read_manifest(toy)
    paths = [(manifest.path(0), {"label": manifest.label(0)})]
    sampler = UniformClipSampler(clip_duration=0.3)
    theirs = next(iter(LabeledVideoDataset(paths, sampler, decode_audio=False)))
    ours = list(LabeledVideos(_clip_dataset(toy)))
    assert len(ours) == len(manifest)
    for key, value in theirs.items():
        if key != "audio":
            assert type(ours[0][key]) is type(value), key
    assert ours[0]["video"].dtype == theirs["video"].dtype
    assert ours[0]["video"].shape == (3, 4, 32, 32) and theirs["video"].shape[0] == 3
    assert ours[0]["video_name"] == theirs["video_name"]
    assert theirs["video"].max() > 1 and ours[0]["video"].max() > 1
    assert [each["label"] for each in ours] == [manifest.label(i) for i in range(len(manifest))]
    other = next(iter(LabeledVideos(_clip_dataset(toy), epoch=1)))
    assert not torch.equal(other["video"], ours[0]["video"]), "another epoch, another clip"


def test_windows_and_crops_are_told_apart(toy: Path) -> None:
    dataset = _clip_dataset(toy, repeats=4, windows=2)
    sample = dataset[0, 3]
    found = [each for each in LabeledVideos(dataset) if each["video_index"] == 3]
    assert [(each["clip_index"], each["aug_index"]) for each in found] == [
        (0, 0), (0, 1), (1, 0), (1, 1)
    ]  # fmt: skip
    for each, row in zip(found, (0, 2, 1, 3), strict=True):  # windows take turns
        assert torch.equal(each["video"], sample.clips[row].permute(3, 0, 1, 2).float())


def test_views_and_workers_share_the_videos(toy: Path) -> None:
    views = ViewDataset(
        read_manifest(toy), DataConfig(num_frames=4, frame_stride=1, crop_size=32),
        num_clips=2, num_crops=1,
    )  # fmt: skip
    # A forked process that collects a container of pytorchvideo's waits for its threads for ever
    gc.collect()
    batches = list(DataLoader(LabeledVideos(views), batch_size=6, num_workers=2))
    indices = torch.cat([batch["video_index"] for batch in batches])
    assert sorted(indices.tolist()) == sorted([*range(24), *range(24)])
    assert torch.cat([batch["clip_index"] for batch in batches]).sum() == 24


def test_an_unreadable_view_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "list.csv").write_text("path,label\nbroken.mp4,0\n")
    views = ViewDataset(
        read_manifest(tmp_path / "list.csv"),
        DataConfig(num_frames=4, frame_stride=1, crop_size=32),
        num_clips=1, num_crops=1,
    )  # fmt: skip
    with pytest.raises(VideoReadError, match=r"broken\.mp4"):
        list(LabeledVideos(views))
