"""The README's commands and Python for own videos, as they are written, with some hundred clips."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpm_video.cli.main import main
from hpm_video.data.prepare.toy import write_toy_videos

README = Path(__file__).parents[1] / "README.md"
TUTORIAL = README.parent / "docs" / "own_videos.md"
# What makes the commands quick. Clips, batches and steps are those of the recipes.
_MODEL = (
    "run.device=cpu", "run.precision=float32", "data.num_workers=0", "model.width=24",
    "model.depth=1", "model.heads=2", "optim.epochs=1", "optim.warmup_epochs=0",
)  # fmt: skip
_PLAIN = ("device=cpu", "precision=float32", "num_workers=0")
_QUICK = {
    "pretrain": (
        *_MODEL, "model.decoder_width=24", "model.decoder_depth=1", "model.decoder_heads=2",
        "run.picture_every=0",
    ),
    "finetune": _MODEL,
    "evaluate": _PLAIN,
    "predict": _PLAIN,
    "probe": _PLAIN,
    "features": _PLAIN,
    "visualize": ("--device", "cpu", "--num-masks", "1"),
}  # fmt: skip


def _block(page: Path, heading: str, fence: str = "```\n") -> str:
    """The first block of a page after a heading."""
    return page.read_text().partition(heading)[2].partition(fence)[2].partition("```")[0]


def _commands(block: str) -> list[list[str]]:
    """The words of each command of a block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def _as_in_readme(block: str) -> str:
    """Commands for what `start` writes, with the paths of the README's own commands instead."""
    for ours, theirs in (("pretrained", "outputs/pre"), ("finetuned", "outputs/fine"), ("", "")):
        block = block.replace(f"hpm_videos/{ours}", theirs)
    return block


def test_it_is_short() -> None:
    assert len(README.read_text().split()) <= 700


def test_own_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"size": 32, "num_frames": 20, "num_workers": 2}
    for name, count in (("train", 318), ("val", 16)):
        write_toy_videos(tmp_path / "toy" / name, num_videos=count, seed=count, **small)
        shutil.copytree(tmp_path / "toy" / name / "videos", tmp_path / "videos" / name)
    videos = sorted((tmp_path / "videos" / "train").rglob("*.mp4"))
    for place in ("video1.mp4", "new_videos/clip.mp4"):
        Path(place).parent.mkdir(exist_ok=True)
        shutil.copy(videos[0], place)
    shutil.copy(next((tmp_path / "videos" / "train").rglob("*.webm")), "video2.webm")

    commands = _commands(_block(README, "## Train on your own videos"))
    assert [command[1] for command in commands] == [
        *("data", "data", "data", "pretrain", "finetune", "evaluate", "predict", "visualize"),
    ]
    further = _commands(_as_in_readme(_block(TUTORIAL, "## 7. Go further")))
    assert [command[1] for command in further] == ["probe", "features"]
    for program, *words in commands + further:
        assert program == "hpm-video"
        assert main([*words, *_QUICK.get(words[0], ())]) == 0, words
    assert len((tmp_path / "train.csv").read_text().splitlines()) == 319
    assert (tmp_path / "outputs" / "pre" / "metrics.jsonl").exists()
    assert "4 steps per epoch" in (tmp_path / "outputs" / "pre" / "log.txt").read_text()
    assert "8 classes, 318 videos" in (tmp_path / "outputs" / "fine" / "log.txt").read_text()
    assert {path.stem for path in Path("pictures").glob("*.html")} == {"index", "video1", "video2"}
    assert len(Path("classes.csv").read_text().splitlines()) == 2
    assert Path("features.npz").exists()

    seen: dict[str, Any] = {}
    exec(_block(README, "## Use it from Python", "```python\n"), seen)
    assert seen["feature"].shape == (24,)
    assert sum(seen["classes"].values()) == pytest.approx(1, abs=1e-3)
    assert seen["tubes"].scores.shape == seen["tubes"].mask.shape
    assert seen["tubes"].frames.dtype == np.uint8


@pytest.mark.parametrize("job", ["pretrain", "finetune"])
@pytest.mark.parametrize("num_videos", [8, 20, 318])
def test_a_recipe_of_large_steps_says_at_once_what_few_videos_need(
    job: str,
    num_videos: int,
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = toy.read_text().splitlines()
    video = f"{toy.parent / lines[1].split(',')[0]}"
    rows = "".join(f"{video},{row % 2}\n" for row in range(num_videos))
    (tmp_path / "few.csv").write_text(f"path,label\n{rows}")
    command = [job, "ssv2_base", "data.manifest=few.csv", "run.output_dir=run", *_QUICK[job]]
    command += ["data.num_frames=4", "data.crop_size=32"]
    capsys.readouterr()
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"must be at most the number of videos ({num_videos})" in line
    found = re.search(r"add ((?:\S+=\S+ )+)to the command", line)
    assert found is not None
    own = "in place of ssv2_base: own_videos (without a GPU own_videos_cpu)"
    if job == "pretrain":  # whose own steps have 64 videos
        assert line.endswith(own) == (num_videos >= 64)
    assert main([*command, *found[1].split()]) == 0
