"""A whole pre-training as a bench: what it reads, runs and says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpm_video.bench import train
from hpm_video.bench.train import rates
from hpm_video.cli.bench_options import config_from
from hpm_video.cli.main import main
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.method import step

Arguments = Callable[..., list[str]]


def test_rates_are_of_all_clips_and_all_time() -> None:
    records = [
        {"clips_per_second": 10.0, "data_wait_fraction": 0.0},  # 100 clips in 10 s
        {"clips_per_second": 2.5, "data_wait_fraction": 0.5},  # in 40 s, of which it waits 20
    ]
    assert rates(records) == pytest.approx((200 / 50, 20 / 50))


@pytest.mark.parametrize(("waiting", "limit"), [(0.05, "step"), (0.6, "loader")])
def test_bench_train_runs_and_names_what_limits(
    pretrain_arguments: Arguments,
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    waiting: float,
    limit: str,
) -> None:
    seen: list[PretrainConfig] = []
    lists: list[list[str]] = []
    pretrain = train.pretrain

    def watched(config: PretrainConfig) -> bool:
        seen.append(config)
        manifest = read_manifest(config.data.manifest)
        lists.append([manifest.path(k) for k in range(len(manifest))])
        return pretrain(config)

    monkeypatch.setattr(train, "pretrain", watched)
    monkeypatch.setattr(
        train,
        "read_records",
        lambda folder: [
            {**record, "data_wait_fraction": waiting} for record in _records(folder, 3)
        ],
    )
    _, _, *settings = pretrain_arguments(tmp_path / "unused")
    file = tmp_path / "result.json"
    words = [*settings, "optim.accumulation=2", "run.profile_steps=1", "--steps=10"]
    words.append(f"--json={file}")
    assert main(["bench", "train", *words]) == 0
    (config,) = seen
    (videos,) = lists
    # 9 steps of 2 micro-batches of 4 videos, of which there are 24
    assert len(videos) == 9 * 2 * 4 and videos[:24] == videos[24:48] and len(set(videos)) == 24
    assert all(Path(video).is_relative_to(toy.parent) for video in videos)
    assert config.run.profile_steps == 0  # whose trace would go with the folder
    assert config.run.log_every == 3 and not Path(config.run.output_dir or "").exists()
    assert not (tmp_path / "unused").exists()
    result = json.loads(file.read_text())
    rows = {row["what"]: row for row in result["rows"]}
    assert set(rows) == {"run", "step alone", "loader alone"}
    assert all(row["clips_per_s"] > 0 for row in rows.values())
    assert rows["run"]["data_wait_fraction"] == pytest.approx(waiting)
    captured = capsys.readouterr()
    assert f"limit: {limit} (the run waits for videos {waiting:.0%}" in captured.out
    assert "9 steps in all" in captured.err and "9 steps in all" not in captured.out


def test_the_step_alone_is_that_of_the_config(
    pretrain_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its micro-batches count, and all settings are the config's."""
    calls: list[dict[str, object]] = []
    compute = step.pretrain_step

    def spy(*arguments: Any, **settings: Any) -> step.PretrainStep:
        calls.append({**settings, "clips": len(arguments[2]), "teacher": arguments[1]})
        return compute(*arguments, **settings)

    monkeypatch.setattr(step, "pretrain_step", spy)
    monkeypatch.setattr(
        train,
        "round_seconds",
        lambda functions, **_: {
            name: [(function(), 2.0)[1]] for name, function in functions.items()
        },
    )
    settings = ("optim.accumulation=3", "data.batch_size=2", "masking.decoder_mask_ratio=0.5")
    _, file, *words = pretrain_arguments(tmp_path / "run", *settings)
    config = load_config(PretrainConfig, file, words)
    assert train._step_alone(config) == 3 * 2 * config.data.repeats / 2.0
    assert [call["clips"] for call in calls] == 3 * [2 * config.data.repeats]
    assert calls[0]["masking"] == config.masking and calls[0]["loss"] == config.loss
    assert (calls[0]["teacher"] is None) != config.masking.mines


def test_a_stopped_run_has_no_result(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "pretrain", lambda config: False)  # as after Ctrl-C
    file = tmp_path / "result.json"
    assert main(["bench", "train", f"data.manifest={toy}", f"--json={file}"]) == 1
    assert capsys.readouterr().err == "hpm-video bench: interrupted\n"
    assert not file.exists()


def _records(folder: Path, count: int) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == count
    return [json.loads(line) for line in lines]


def test_settings_of_a_bench(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("optim: {epochs: 77}\n")
    assert config_from([]) == PretrainConfig()
    config = config_from(["run.seed=1", str(file), "data.batch_size=2"])
    assert (config.run.seed, config.optim.epochs, config.data.batch_size) == (1, 77, 2)
    with pytest.raises(ValueError, match=r"config \(x y\) must be a single file"):
        config_from(["x", "y"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps=2"], "--steps (2) must be at least 3"),
        (["model.sise=tiny"], "did you mean model.size?"),
        (["nowhere.yaml"], "config (nowhere.yaml) does not exist"),
    ],
)
def test_bench_train_refuses(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "train", *words]) == 2
    assert said in capsys.readouterr().err
