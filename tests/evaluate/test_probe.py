"""Probes of checkpoints, and of a pre-training in progress, which must not notice."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_together

from hpm_video.cli.main import main
from hpm_video.config import ProbeConfig, ProbeJobConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.video import crops as transforms
from hpm_video.data.video import frame_indices as clips
from hpm_video.data.video.frames import read_frames
from hpm_video.evaluate import probe
from hpm_video.evaluate.frozen_encoder import Backbone, load_backbone
from hpm_video.evaluate.predictions import read_predictions
from hpm_video.evaluate.probe import accuracies, encode_videos
from hpm_video.evaluate.probe_heads import knn_scores
from hpm_video.runtime.distributed import World
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.load import load_classifier

Arguments = Callable[..., list[str]]
SETTINGS = ["device=cpu", "precision=float32", "num_workers=0"]
ALONE = World(0, 1, torch.device("cpu"))
TIMING = ("clips_per_second", "data_wait_fraction")


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory, toy: Path) -> tuple[Path, Path]:
    """16 toy videos to learn from and 10 to judge; of each, one is no video."""
    folder = tmp_path_factory.mktemp("lists")
    manifest = read_manifest(toy)
    rows = [f"{manifest.path(i)},{manifest.label(i)}" for i in range(24)]
    (folder / "broken.mp4").write_bytes(b"no video")
    for name, part in (("train", rows[:15]), ("val", rows[15:])):
        bad = f"{folder / 'broken.mp4'},{2 if name == 'train' else 7}"
        lines = ["path,label", *part[:4], bad, *part[4:]]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    shutil.copy(toy.parent / "classes.txt", folder)
    return folder / "train.csv", folder / "val.csv"


def _probe_arguments(checkpoint: Path, lists: tuple[Path, Path], *kinds: str) -> list[str]:
    train, val = lists
    return [
        *("probe", str(checkpoint), "--train", str(train), "--val", str(val)),
        *("--kind", *kinds, *SETTINGS, "probe.attentive_epochs=2", "probe.linear_epochs=5"),
    ]


def _in_run(lists: tuple[Path, Path], *kinds: str) -> list[str]:
    train, val = lists
    return [
        *("run.probe_every=1", f"probe.train_manifest={train}", f"probe.val_manifest={val}"),
        *(f"probe.kinds=[{','.join(kinds)}]", "probe.linear_epochs=5", "probe.attentive_epochs=1"),
    ]


def _without_workers(settings: ProbeConfig) -> ProbeJobConfig:
    return ProbeJobConfig(num_workers=0, decode_timeout_s=None, probe=settings)


def _slow_feature(checkpoint: Path, path: str, num_clips: int, num_crops: int) -> torch.Tensor:
    """Mean over a video's views of the mean over tokens, every view by itself."""
    loaded = load_backbone(checkpoint, precision="float32")
    data = loaded.data
    windows = clips.dense_view_indices(
        12, clip_frames=data.num_frames, stride=data.frame_stride, num_clips=num_clips
    )
    found = []
    for window in windows:
        frames = read_frames(path, window)
        for box in transforms.view_crops(*frames.shape[1:3], num_crops=num_crops):
            view = transforms.resize_crop(frames, box, data.crop_size)
            clip = torch.as_tensor(view).permute(3, 0, 1, 2)[None].float() / 255
            found.append(loaded.backbone.pooled(loaded.backbone.encode(clip))[0])
    return torch.stack(found).mean(dim=0)


def test_features_are_means_over_all_views(pretrained: Path, lists: tuple[Path, Path]) -> None:
    loaded = load_backbone(pretrained, precision="float32")
    manifest = read_manifest(lists[1])
    encoded = encode_videos(
        loaded.backbone,
        manifest,
        loaded.data,
        _without_workers(ProbeConfig(num_clips=2, num_crops=3, batch_size=3)),
        ALONE,
        with_tokens=True,
    )
    assert encoded is not None and encoded.tokens is not None
    assert [index for index, _ in encoded.bad] == [4]
    rows = [index for index in range(10) if index != 4]
    assert encoded.labels.tolist() == [manifest.label(index) for index in rows]
    for place in (0, 3, 4, 8):  # the fifth one, which is broken, lies between
        slow = _slow_feature(pretrained, manifest.path(rows[place]), 2, 3)
        torch.testing.assert_close(encoded.features[place], slow, rtol=1e-4, atol=1e-5)
    assert encoded.tokens.shape == (9, 6 * 32, 32) and encoded.tokens.dtype == torch.float16
    means = encoded.tokens.float().mean(dim=1)
    torch.testing.assert_close(means, encoded.features, rtol=1e-2, atol=1e-2)
    assert (encoded.features[0] - encoded.features[1]).abs().max() > 1e-3


def test_the_pooled_feature_of_a_classifier_is_what_its_head_sees(
    tmp_path: Path, finetune_arguments: Arguments
) -> None:
    from hpm_video.weights.load import load_classifier

    assert main(finetune_arguments(tmp_path / "run", "optim.epochs=1")) == 0
    loaded = load_backbone(tmp_path / "run", precision="float32")
    model, _, _ = load_classifier(tmp_path / "run")
    clip = torch.rand(2, 3, 4, 32, 32)
    pooled = loaded.backbone.pooled(loaded.backbone.encode(clip))
    with torch.no_grad():
        torch.testing.assert_close(model.head(pooled), model.eval()(clip))
    assert loaded.kind == "finetune" and loaded.backbone.tokens(pooled[:, None]).shape == (2, 1, 32)

    alone = tmp_path / "encoder.pt"
    export = ["weights", "export", str(tmp_path / "run"), "--to", "checkpoint", "--encoder"]
    assert main([*export, "-o", str(alone)]) == 0
    backbone = load_backbone(alone, precision="float32").backbone
    means = backbone.encode(clip).mean(dim=1)
    torch.testing.assert_close(backbone.pooled(backbone.encode(clip)), means)
    torch.testing.assert_close(model.norm(means), pooled)  # the norm that it has left behind


def test_steps_are_means_over_the_tokens_of_their_time(pretrained: Path) -> None:
    backbone: Backbone = load_backbone(pretrained, precision="float32").backbone
    tokens = backbone.encode(torch.rand(2, 3, 4, 32, 32))
    steps = backbone.steps(tokens)
    assert steps.shape == (2, 2, 32)
    torch.testing.assert_close(steps[1, 1], tokens[1, 16:].mean(dim=0))
    torch.testing.assert_close(steps.mean(dim=1), backbone.pooled(tokens))


def test_cells_are_means_of_where_and_when(pretrained: Path, lists: tuple[Path, Path]) -> None:
    """A grid of 2 x 4 x 4 tokens in 2 x 1 x 2 cells: halves of the time, left and right."""
    loaded = load_backbone(pretrained, precision="float32")
    tokens = loaded.backbone.encode(torch.rand(2, 3, 4, 32, 32))
    pooled = loaded.backbone.pooled(tokens, (2, 1, 2))
    assert pooled.shape == (2, 4 * 32)
    cells = [
        [tokens[1, 16 * t + 4 * y + x] for y in range(4) for x in columns]
        for t in range(2)
        for columns in ((0, 1), (2, 3))
    ]
    slow = torch.cat([torch.stack(cell).mean(dim=0) for cell in cells])
    torch.testing.assert_close(pooled[1], slow)
    encoded = encode_videos(
        loaded.backbone,
        read_manifest(lists[1]),
        loaded.data,
        _without_workers(ProbeConfig(num_clips=2, cells=(2, 1, 2))),
        ALONE,
        with_tokens=False,
    )
    assert encoded is not None and encoded.features.shape == (9, 4 * 32)


def test_unreadable_videos_count_as_wrong() -> None:
    right, labels = np.array([True, True, False]), np.array([0, 0, 1])
    top1, balanced = accuracies(right, labels, np.array([0, 0, 1, 1, 3]))
    assert top1 == pytest.approx(2 / 5) and balanced == pytest.approx((1 + 0 + 0) / 3)


def _lines(stdout: str) -> list[str]:
    return [line for line in stdout.splitlines() if line]


def test_the_command_judges_by_every_kind(
    pretrained: Path, lists: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _probe_arguments(pretrained, lists, "knn", "linear", "attentive")
    capsys.readouterr()
    assert main(arguments) == 0
    said = _lines(capsys.readouterr().out)
    assert [line.split()[0] for line in said] == [
        *("unreadable,", "unreadable,", "knn", "linear", "attentive", "warning:", "train")
    ]
    assert "not trained on" in said[0] and "counted as wrong" in said[1]
    assert all(": " in line and "broken.mp4" in line for line in said[:2])
    for line in said[2:5]:
        found = re.search(r"top1 (\S+)  balanced_accuracy (\S+)  \(.+\)$", line)
        assert found and 0 <= float(found[1]) <= 0.9 and 0 <= float(found[2]) <= 1
    assert "1 neighbours" in said[2]  # 15 videos of 8 classes
    assert (
        said[-2] == "warning: the training list also contains 1 of 10 videos of the validation list"
    )
    assert said[-1] == "train 16  val 10  unreadable 2  precision float32"
    assert main(arguments) == 0
    assert _lines(capsys.readouterr().out) == said


def test_others_wait_outside_of_collectives_while_probes_learn(
    pretrained: Path, lists: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may take longer than a process may wait in a collective."""
    happened = []

    @contextmanager
    def spied(world: World) -> Iterator[None]:
        happened.append("begins")
        yield
        happened.append("ends")

    def learns(*arguments: Any, **named: Any) -> Any:
        happened.append("learns")
        return knn_scores(*arguments, **named)

    monkeypatch.setattr(probe, "others_wait", spied)
    monkeypatch.setattr(probe, "knn_scores", learns)
    assert main(_probe_arguments(pretrained, lists, "knn")) == 0
    assert happened == ["begins", "learns", "ends"]


def test_two_processes_find_the_same(
    pretrained: Path, lists: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Shares of 8 and 8, of 5 and 5 videos in batches of 3: no share is whole batches."""
    arguments = _probe_arguments(pretrained, lists, "knn", "linear", "attentive")
    arguments.append("probe.batch_size=3")
    assert main(arguments) == 0
    alone = _lines(capsys.readouterr().out)
    first, second = run_together(2, [arguments])
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert _lines(first.stdout) == alone and not second.stdout


def _refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_probed_is_one_line(
    pretrained: Path,
    lists: tuple[Path, Path],
    toy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = read_manifest(toy).path(0)
    (tmp_path / "none.csv").write_text(f"path\n{video}\n")
    (tmp_path / "some.csv").write_text(f"path,label\n{video},0\n{video},\n")
    (tmp_path / "more.csv").write_text(f"path,label\n{video},0\n{video},9\n")
    (tmp_path / "two.csv").write_text(f"path,label\n{video},0\n{video},1\n")
    train, val = lists

    def line(train: Path, val: Path, *settings: str) -> str:
        arguments = _probe_arguments(pretrained, (train, val), "knn")
        return _refusal([*arguments, *settings], capsys)

    assert "--train (" in line(tmp_path / "none.csv", val)
    assert "must have labels, but has none" in line(tmp_path / "none.csv", val)
    assert "label (none) of" in line(tmp_path / "some.csv", val)
    refused = line(tmp_path / "two.csv", tmp_path / "more.csv")
    assert "label (9) of" in refused and "in --val must be in [0, 1]" in refused
    (tmp_path / "named.csv").write_text(f"path,label\n{video},b\n{video},a\n")
    refused = line(tmp_path / "two.csv", tmp_path / "named.csv")
    assert "named.csv:2: label (b) must be a number: " in refused
    assert "probe.knn_temperature (0.0)" in line(train, val, "probe.knn_temperature=0")
    arguments = _probe_arguments(pretrained, lists, "nearest")
    assert "kinds (nearest) must be one of knn, linear, attentive" in _refusal(arguments, capsys)
    arguments = [*_probe_arguments(pretrained, lists, "attentive"), "probe.most_token_gb=1e-5"]
    assert "probe.most_token_gb (1e-05) must be at least 0.1," in _refusal(arguments, capsys)
    assert "cells along time, height and width" in line(train, val, "probe.cells=[0, 1, 1]")
    refused = line(train, val, "probe.cells=[2, 5, 1]")
    assert "probe.cells ([2, 5, 1]) must not be finer than the grid, 2 x 4 x 4 tokens" in refused
    refused = line(train, val, "probe.cells=[2, 4, 4]", "probe.most_token_gb=1e-5")
    assert "that the cells of" in refused


def test_nothing_readable_is_no_accuracy(
    pretrained: Path,
    lists: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "gone.csv").write_text("path,label\nx.mp4,0\ny.mp4,7\n")
    (tmp_path / "x.mp4").write_bytes(b"no video")
    arguments = _probe_arguments(pretrained, (tmp_path / "gone.csv", lists[1]), "knn")
    assert main(arguments) == 1
    assert "none of 2 videos can be read" in capsys.readouterr().err


def _untimed(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of the training without rates, and records of the probes."""
    records = [
        {name: value for name, value in record.items() if name not in TIMING}
        for record in read_records(folder)
    ]
    probes = [record for record in records if "knn_top1" in record]
    return [record for record in records if "loss" in record], probes


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(folder, kind="pretrain")
    return {f"{part}.{name}": v for part in ("model", "teacher") for name, v in state[part].items()}


@pytest.fixture(scope="module")
def probed(
    tmp_path_factory: pytest.TempPathFactory,
    pretrain_arguments: Arguments,
    lists: tuple[Path, Path],
) -> Path:
    """The run of ``pretrained``, with stochastic depth, and probes of all kinds."""
    folder = tmp_path_factory.mktemp("probed") / "run"
    settings = _in_run(lists, "knn", "linear", "attentive")
    assert main(pretrain_arguments(folder, "model.drop_path=0.3", *settings)) == 0
    return folder


def test_a_run_has_a_curve_of_its_probes(probed: Path) -> None:
    _, probes = _untimed(probed)
    assert [(record["step"], record["epoch"]) for record in probes] == [(0, 0), (6, 1), (12, 2)]
    assert list(probes[0]) == [
        *("step", "epoch", "knn_top1", "knn_balanced_accuracy"),
        *("linear_top1", "linear_balanced_accuracy", "linear_lr"),
        *("attentive_top1", "attentive_balanced_accuracy", "unreadable"),
    ]
    assert all(record["unreadable"] == 2 for record in probes)
    log = (probed / "log.txt").read_text()
    assert log.count("unreadable in a probe, not trained on: ") == 1
    assert log.count("unreadable in a probe, counted as wrong: ") == 1
    assert (
        log.count("warning: the training list also contains 1 of 10 videos of the validation list")
        == 1
    )


def test_a_run_does_not_notice_its_probes(
    probed: Path, tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    assert main(pretrain_arguments(tmp_path / "run", "model.drop_path=0.3")) == 0
    assert _untimed(tmp_path / "run")[0] == _untimed(probed)[0]
    mine, theirs = _weights(tmp_path / "run"), _weights(probed)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_an_interrupted_run_has_the_same_records_and_probes(
    probed: Path,
    tmp_path: Path,
    pretrain_arguments: Arguments,
    lists: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped after the probe of epoch 1, and once more before the first checkpoint."""
    settings = ["model.drop_path=0.3", *_in_run(lists, "knn", "linear", "attentive")]
    arguments = pretrain_arguments(tmp_path / "run", *settings)
    from hpm_video.train.run.probes import RunProbe

    original = RunProbe.run

    def crash(self: RunProbe, *values: Any, **named: Any) -> None:
        original(self, *values, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunProbe, "run", crash)
    assert main(arguments) == 1  # after the probe before the first step; nothing was saved
    assert len(read_records(tmp_path / "run")) == 1

    def stop(self: RunProbe, *values: Any, **named: Any) -> None:
        original(self, *values, **named)
        if named["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunProbe, "run", stop)
    assert main(arguments) == 1
    assert load_checkpoint(tmp_path / "run")["step"] == 6
    monkeypatch.setattr(RunProbe, "run", original)
    assert main(arguments) == 0
    assert _untimed(tmp_path / "run") == _untimed(probed)
    mine, theirs = _weights(tmp_path / "run"), _weights(probed)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_says_at_once_what_its_probes_lack(
    pretrain_arguments: Arguments,
    lists: tuple[Path, Path],
    toy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    assert "probe.train_manifest ([])" in _refusal(
        pretrain_arguments(folder, "run.probe_every=1"), capsys
    )
    (tmp_path / "none.csv").write_text(f"path\n{read_manifest(toy).path(0)}\n")
    settings = _in_run((tmp_path / "none.csv", lists[1]), "knn")
    assert "probe.train_manifest (" in _refusal(pretrain_arguments(folder, *settings), capsys)
    settings = _in_run(lists, "nearest")
    assert "probe.kinds (nearest)" in _refusal(pretrain_arguments(folder, *settings), capsys)
    assert not folder.exists()


def test_probes_may_change_between_two_starts_of_a_run(
    pretrained: Path, tmp_path: Path, pretrain_arguments: Arguments, lists: tuple[Path, Path]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(pretrained, folder, symlinks=True)
    before = json.dumps(_untimed(folder)[0])
    assert main(pretrain_arguments(folder, *_in_run(lists, "knn"))) == 0
    assert json.dumps(_untimed(folder)[0]) == before


def test_two_processes_probe_their_run_together(
    probed: Path, tmp_path: Path, pretrain_arguments: Arguments, lists: tuple[Path, Path]
) -> None:
    """Half a batch each; what is probed before the first step is the same model as on one."""
    settings = ["data.batch_size=2", "model.drop_path=0.3", *_in_run(lists, "knn", "linear")]
    for done in run_together(2, [pretrain_arguments(tmp_path / "run", *settings)]):
        assert done.returncode == 0, done.stderr
    alone, together = _untimed(probed)[1], _untimed(tmp_path / "run")[1]
    assert [record["step"] for record in together] == [0, 6, 12]
    assert together[0] == {name: alone[0][name] for name in together[0]}


_LONG = "probe.linear_epochs=300"


def _kept(checkpoint: Path, lists: tuple[Path, Path], folder: Path, *settings: str) -> list[str]:
    return [
        *_probe_arguments(checkpoint, lists, "linear", "knn"),
        "--keep",
        str(folder),
        *settings,
        _LONG,
    ]


@pytest.mark.parametrize("kind", ["pretrained", "by rate", "finetuned", "kept again"])
def test_a_kept_probe_is_a_classifier(
    tmp_path: Path,
    lists: tuple[Path, Path],
    pretrained: Path,
    finetune_arguments: Arguments,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its scores are the probe's, also where the encoder's clips are others than in training."""
    source, settings = pretrained, ["clip.num_frames=6"]
    if kind == "by rate":  # clips of other frames than by number
        settings = ["clip.fps=11", "clip.frame_stride=1"]
    if kind == "finetuned":
        assert main(finetune_arguments(tmp_path / "fine", f"model.init={pretrained}")) == 0
        source, settings = tmp_path / "fine", []
    if kind == "kept again":
        assert main(_kept(pretrained, lists, tmp_path / "first")) == 0
        source, settings = tmp_path / "first", []
    found, learn = [], probe.linear_scores
    monkeypatch.setattr(
        probe, "linear_scores", lambda *a, **k: found.append(learn(*a, **k)) or found[-1]
    )
    folder = tmp_path / "kept"
    assert main(_kept(source, lists, folder, *settings)) == 0
    said = capsys.readouterr().out
    assert f"kept as a classifier: {folder}" in said
    one = ["evaluation.num_clips=1", "evaluation.num_crops=1"]
    results = ["-o", str(tmp_path / "evaluation")]
    assert main(["evaluate", str(folder), *results, *one, *SETTINGS]) == 0
    scored = read_predictions(tmp_path / "evaluation")
    readable = [k for k in range(len(scored.labels)) if k not in dict(scored.bad)]
    scores = torch.from_numpy(scored.scores[readable])
    assert (scores - found[-1].scores).abs().max() < 1e-5
    assert re.search(rf"linear +top1 {scored.top(1):.4f} ", said)
    assert scores.max() - scores.min() > 0.02


def test_a_kept_probe_is_read_like_any_other(
    tmp_path: Path,
    lists: tuple[Path, Path],
    pretrained: Path,
    finetune_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, (_, val) = tmp_path / "kept", lists
    assert main(_kept(pretrained, lists, folder)) == 0
    video = read_manifest(val).path(0)
    assert main(["predict", str(folder), video, *SETTINGS]) == 0
    assert main(["features", str(folder), "--video", video, "-o", str(tmp_path / "f.npz")]) == 0
    assert main(["weights", "inspect", str(folder)]) == 0
    model, config, classes = load_classifier(folder)
    assert config.model.pooling == "norm_mean" and classes is not None
    clips_ = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model.eval()(clips_)
    with torch.autocast("cpu", torch.bfloat16):  # the head is exact
        inputs: list[torch.Tensor] = []
        model.head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        assert model(clips_).dtype == torch.float32 == inputs[0].dtype
    file = tmp_path / "kept.safetensors"
    assert main(["weights", "export", str(folder), "-o", str(file)]) == 0
    program = tmp_path / "kept.pt2"
    assert main(["weights", "export", str(folder), "--to", "torch-export", "-o", str(program)]) == 0
    assert torch.allclose(torch.export.load(program).module()(clips_), expected, atol=1e-5)
    encoder = tmp_path / "encoder"
    export = ["weights", "export", str(folder), "--to", "huggingface", "-o", str(encoder)]
    assert main([*export, "--encoder"]) == 0
    again = finetune_arguments(tmp_path / "fine", f"model.init={folder}", "optim.epochs=1")
    assert main(again) == 0
    capsys.readouterr()
    assert main([*export[:-1], str(tmp_path / "whole")]) == 2
    assert "model.pooling (norm_mean) must be mean_norm" in capsys.readouterr().err
    assert main(finetune_arguments(folder)) == 2
    assert "belongs to a run with" in capsys.readouterr().err
    # A run with the norm before the mean can be trained, too, and starts with the encoder's own
    settings = ("model.pooling=norm_mean", "model.freeze=encoder", "optim.epochs=1")
    tuned = finetune_arguments(tmp_path / "tuned", f"model.init={pretrained}", *settings)
    assert main(tuned) == 0
    weights = load_checkpoint(tmp_path / "tuned")["model"]
    norm = load_checkpoint(pretrained)["model"]["encoder.norm.weight"]
    assert weights["encoder.norm.weight"].equal(norm) and "norm.weight" not in weights


@pytest.mark.parametrize(
    ("kinds", "settings", "words"),
    [
        (["knn", "attentive"], [], "--kind (knn attentive) must include linear with --keep"),
        (["linear"], ["probe.cells=[1,2,2]"], "probe.cells ([1, 2, 2]) must be [1, 1, 1]"),
        (["linear"], ["used"], "must be an empty or new folder: it holds files"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_any_work(
    tmp_path: Path,
    lists: tuple[Path, Path],
    pretrained: Path,
    capsys: pytest.CaptureFixture[str],
    kinds: list[str],
    settings: list[str],
    words: str,
) -> None:
    folder = tmp_path / "kept"
    if settings == ["used"]:
        folder.mkdir()
        (folder / "notes.txt").touch()
        settings = []
    arguments = [*_probe_arguments(pretrained, lists, *kinds), "--keep", str(folder), *settings]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err and not captured.out
