"""What an exported folder says of its model, and whether what it says of loading is true."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from transformers import AutoImageProcessor, VideoMAEImageProcessor

from hpm_video.cli.main import main
from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.samples.clips import Request
from hpm_video.data.samples.views import ViewReader
from hpm_video.evaluate.embed_classify import _Given
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD
from hpm_video.train.run.logs import read_records
from hpm_video.weights.load import load_classifier

Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def finetuned(
    tmp_path_factory: pytest.TempPathFactory, finetune_arguments: Arguments, pretrained: Path,
    toy: Path,
) -> Path:  # fmt: skip
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    settings = (f"model.init={pretrained}", f"data.val_manifest={toy}", "optim.epochs=1")
    assert main(finetune_arguments(folder, *settings)) == 0
    return folder


def _export(source: Path, output: Path, *words: str) -> str:
    ask = ["weights", "export", str(source), "-o", str(output), "--to", "huggingface", *words]
    assert main(ask) == 0
    return (output / "README.md").read_text()


def _header(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def _run_python(card: str, folder: Path, frames: Sequence[Any]) -> dict[str, Any]:
    """The card's own program, of a folder."""
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found: dict[str, Any] = {"frames": frames}
    exec(program.replace("OWNER/NAME", str(folder)), found)
    return found


def test_the_card_of_a_classifier(
    finetuned: Path, tmp_path: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = _export(finetuned, tmp_path / "mine")
    assert "README.md: fill in the licence" in capsys.readouterr().out
    header = _header(card)
    assert header["license"] is None and header["pipeline_tag"] == "video-classification"
    assert "\n# mine\n" in card and "of 8 classes" in card and "4 frames of 32 x 32 pixels" in card
    assert "24 videos, 4 per step" in card and f"`{toy.name}`" in card and "`run`" in card
    assert str(toy.parent) not in card and str(finetuned.parent) not in card
    assert "optim.base_lr=0.064" in card and "num_workers" not in card
    training, evaluation = read_records(finetuned)[-2:]
    assert f"| top1 | {evaluation['top1']:.4g} |" in card
    assert f"| grad\\_norm | {training['grad_norm']:.4g} |" in card
    rng = np.random.default_rng(0)
    frames = list(rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    logits = _run_python(card, tmp_path / "mine", frames)["logits"]
    clip = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None].float() / 255
    ours = load_classifier(finetuned)[0].eval()(clip)
    assert (logits - ours).abs().max() < 1e-5


def test_the_card_of_a_pre_training_shows_pictures(
    pretrained: Path, tmp_path: Path, toy: Path
) -> None:
    manifest = read_manifest(toy)
    clips = [manifest.path(0), manifest.path(1)]
    card = _export(pretrained, tmp_path / "mine", "--clips", *clips)
    for number in (1, 2):
        assert f"(picture_{number}.png)" in card
        assert (tmp_path / "mine" / f"picture_{number}.png").read_bytes()[1:4] == b"PNG"
    assert "with hard patches mining" in card and "masking.mask_ratio=0.75" in card
    last = read_records(pretrained)[-1]
    assert f"| loss | {last['loss']:.4g} |" in card
    frames = [np.zeros((40, 50, 3), dtype=np.uint8)] * 4
    found = _run_python(card, tmp_path / "mine", frames)["last_hidden_state"]
    assert found.shape == (1, 32, 32)


def test_figures_are_not_of_later_steps_than_the_weights(pretrained: Path, tmp_path: Path) -> None:
    """Nor of anything where there is no run."""
    first = next(r for r in read_records(pretrained) if r["step"] == 2)
    for step, words in ((12, f"| loss | {read_records(pretrained)[-1]['loss']:.4g} |"),
                        (3, f"| loss | {first['loss']:.4g} |")):  # fmt: skip
        folder = tmp_path / str(step) / "run"
        (folder / "checkpoints").mkdir(parents=True)
        state = torch.load(pretrained / "checkpoints" / "last", weights_only=True)
        torch.save({**state, "step": step}, folder / "checkpoints" / "step.pt")
        (folder / "metrics.jsonl").write_text(
            (pretrained / "metrics.jsonl").read_text() + '[1]\n{"step": 12, "loss": "a|b"}\nhalf'
        )
        assert words in _export(folder / "checkpoints" / "step.pt", tmp_path / str(step) / "out")
    alone = tmp_path / "alone.pt"
    torch.save(state, alone)
    assert "None: the checkpoint was exported without" in _export(alone, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "official", "--clips", "a.mp4"), "--clips (a.mp4) must come with --to hugg"),
        (("--to", "huggingface", "--clips", "nowhere.mp4"), "nowhere.mp4"),
    ],
)
def test_clips_that_cannot_be_shown(
    pretrained: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    assert main(["weights", "export", str(pretrained), "-o", str(output), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not output.exists()


@pytest.mark.parametrize(
    ("height", "width", "most"),
    # Where the longer side is scaled to no whole number, theirs rounds down
    [(32, 32, 1e-5), (64, 90, 1e-5), (48, 33, 0.2), (36, 64, 0.2)],
)
def test_the_preprocessor_is_ours(
    pretrained: Path, tmp_path: Path, height: int, width: int, most: float
) -> None:
    _export(pretrained, tmp_path / "mine")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "mine")
    assert isinstance(processor, VideoMAEImageProcessor)
    noise = torch.rand(4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    frames = (smooth * 255).byte().permute(0, 2, 3, 1).numpy()
    theirs = processor(list(frames), return_tensors="pt")["pixel_values"][0]
    data = DataConfig(num_frames=4, frame_stride=1, crop_size=32)
    reader = ViewReader(data, 1, 1)
    view = torch.empty(reader.shape, dtype=torch.uint8)
    request: Request = _Given(0, "", 0, frames=frames)
    reader.read(request, view)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    ours = (view[0].permute(0, 3, 1, 2).float() / 255 - mean) / std
    assert theirs.shape == ours.shape and (theirs - ours).abs().mean() < most
