"""Networks of pytorchvideo in our loop: trained, evaluated, continued, and what they refuse."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hpm_video.cli.main import main
from hpm_video.config import ClassifierConfig
from hpm_video.data.loading.loader import ClipBatch
from hpm_video.models.build import Baseline, build_classifier
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.load import load_classifier

# The smallest clips that each takes; X3D's need not fit VideoMAE's grid.
SIZES = {"x3d_s": (5, 33), "slowfast_r50": (8, 32), "mvit_base_16x4": (4, 32)}

SETTINGS = (
    *("run.device=cpu", "run.precision=float32", "run.log_every=1"),
    *("data.frame_stride=1", "data.batch_size=4", "data.num_workers=0"),
    *("optim.epochs=1", "optim.warmup_epochs=0", "optim.base_lr=0.064"),
    *("evaluation.num_clips=1", "evaluation.num_crops=1"),
)


@pytest.fixture(scope="module")
def arguments(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """A function (run folder, settings...) -> arguments of a fine-tuning of two steps."""
    folder = tmp_path_factory.mktemp("eight")
    config, few = folder / "empty.yaml", folder / "few.csv"
    config.write_text("{}\n")
    few.write_text("\n".join(toy.read_text().splitlines()[:9]) + "\n")
    (folder / "classes.txt").write_text((toy.parent / "classes.txt").read_text())
    where = (f"data.manifest={few}", f"data.val_manifest={few}", f"data.root={toy.parent}")

    def arguments(run: Path, *settings: str) -> list[str]:
        return ["finetune", str(config), *SETTINGS, *where, f"run.output_dir={run}", *settings]

    return arguments


@pytest.mark.parametrize("name", SIZES)
def test_it_is_trained_and_evaluated_by_the_same_commands(
    name: str, tmp_path: Path, arguments: Callable[..., list[str]], toy: Path
) -> None:
    num_frames, crop_size = SIZES[name]
    settings = (
        *(f"model.name={name}", f"data.num_frames={num_frames}", f"data.crop_size={crop_size}"),
        "model.head_dropout=0.1",
    )
    assert main(arguments(tmp_path / "run", *settings)) == 0
    records = read_records(tmp_path / "run")
    assert [record["step"] for record in records if "loss" in record] == [1, 2]
    assert all(record["loss"] > 0 for record in records if "loss" in record)
    assert 0 <= records[-1]["top1"] <= 1

    state = load_checkpoint(tmp_path / "run", kind="finetune")
    assert state["trained_grid"] is None and state["num_classes"] == 8
    model, config, classes = load_classifier(tmp_path / "run")
    assert isinstance(model, Baseline) and config.model.name == name
    assert classes is not None and len(classes) == 8
    torch.manual_seed(config.run.seed)
    start = build_classifier(
        config.model, num_frames=num_frames, crop_size=crop_size, num_classes=8
    )
    before = dict(start.named_parameters())
    assert before.keys() == dict(model.named_parameters()).keys()
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n]) and p.ndim > 1]
    assert not still, "every one of them is trained"
    logits = model.eval()(torch.rand(2, 3, num_frames, crop_size, crop_size))
    assert logits.shape == (2, 8)
    assert not torch.allclose(logits.sum(dim=1), torch.ones(2)), "not probabilities already"


def test_a_bad_step_leaves_batch_norms_as_they_are(
    tmp_path: Path, arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their running means move with the forward pass, before anything is known of the loss."""
    on, count = ClipBatch.on, 0

    def spoiling(batch: ClipBatch, device: torch.device | str) -> torch.Tensor:
        nonlocal count
        count += 1
        return on(batch, device) * (torch.nan if count == 2 else 1)

    monkeypatch.setattr(ClipBatch, "on", spoiling)
    settings = ("model.name=x3d_xs", "data.num_frames=4", "data.crop_size=32", "optim.epochs=2")
    settings += (
        "optim.ema_momentum=0.5",
        "run.checkpoint_every_minutes=0",
        "run.keep_checkpoints=0",
    )
    assert main(arguments(tmp_path / "run", *settings)) == 0
    first, third = (  # none is saved after the second
        load_checkpoint(tmp_path / "run" / "checkpoints" / f"step_{step:08d}.pt") for step in (1, 3)
    )
    for part in ("model", "trained_model"):
        means = [name for name in first[part] if name.endswith("running_mean")]
        assert len(means) > 50
        for name in means:
            assert third[part][name].isfinite().all(), name
            assert not torch.equal(third[part][name], first[part][name]), name
        (counted,) = {int(v) for n, v in third[part].items() if n.endswith("num_batches_tracked")}
        assert counted == 2


def test_slowfast_sees_every_fourth_frame_and_all_of_them() -> None:
    model = Baseline("slowfast_r50", num_frames=8, crop_size=32, num_classes=2)
    seen: list[list[torch.Tensor]] = []
    model.network.register_forward_pre_hook(lambda module, inputs: seen.append(list(inputs[0])))
    clips = torch.rand(1, 3, 8, 32, 32)
    model.eval()(clips)
    slow, fast = seen[0]
    normalised = (clips - model.mean) / model.std
    assert torch.equal(fast, normalised) and torch.equal(slow, normalised[:, :, [0, 4]])
    assert abs(float(normalised[0, 0].mean()) - (0.5 - 0.485) / 0.229) < 0.1


def test_mvit_has_the_stochastic_depth_that_is_asked_for() -> None:
    def rates(drop_path: float | None) -> list[float]:
        config = ClassifierConfig(name="mvit_base_16x4", drop_path=drop_path)
        model = build_classifier(config, num_frames=4, crop_size=32, num_classes=2)
        blocks = model.network.blocks
        return [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]

    assert rates(0.3) == pytest.approx([0.3 * block / 15 for block in range(16)])
    assert rates(None) == pytest.approx([0.1 * block / 15 for block in range(16)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["optim.layer_decay=0.75"], ["optim.layer_decay (0.75)", "1 or null", "x3d_s"]),
        (["model.drop_path=0.1"], ["model.drop_path (0.1)", "no stochastic depth"]),
        (["model.size=small"], ["model.size (small)", "left out", "VideoMAE"]),
        (["model.width=32"], ["model.width (32)", "left out"]),
        (["model.init=somewhere"], ["model.init (somewhere)", "left out"]),
        (["model.name=x3d_q"], ["model.name (x3d_q) must be one of", "x3d_xs"]),
        (["data.crop_size=16"], ["data.crop_size (16)", "at least 32"]),
        (
            ["model.name=slowfast_r50", "data.num_frames=6"],
            ["data.num_frames (6)", "a multiple of 4", "slowfast_r50"],
        ),
        (["model.name=mvit_base_16x4", "data.num_frames=5"], ["data.num_frames (5)", "of 2"]),
        (["model.name=mvit_base_16x4", "data.crop_size=34"], ["data.crop_size (34)", "of 4"]),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(
    settings: list[str],
    words: list[str],
    tmp_path: Path,
    arguments: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(tmp_path / "run", "model.name=x3d_s", *settings)) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    for word in words:
        assert word in stderr
    assert not (tmp_path / "run").exists()
