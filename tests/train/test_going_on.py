"""Going on with pre-training: from weights of any origin, to more epochs, with other settings."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from hpm_video.cli.main import main
from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.settings import config_to_dict, load_config
from hpm_video.evaluate.pretrained import load_pretrained
from hpm_video.method.step import PretrainStep, configured_step
from hpm_video.method.targets import token_losses
from hpm_video.method.teacher import Teacher, teacher_of
from hpm_video.models.build import build
from hpm_video.models.hpm import HPM
from hpm_video.models.resample import interpolate_tokens
from hpm_video.models.tokens import TokenGrid, patchify
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD, position_table
from hpm_video.train.optim import divided
from hpm_video.train.run.changes import describe_changes
from hpm_video.train.run.logs import read_records
from hpm_video.train.run.starting_point import find_start
from hpm_video.weights.checkpoint import load_checkpoint, save_checkpoint

Arguments = Callable[..., list[str]]
SMALL = (
    *("data.manifest=a.csv", "data.num_frames=4", "data.crop_size=32", "run.precision=float32"),
    *("model.width=32", "model.depth=2", "model.heads=2", "model.patch_size=8"),
    *("model.decoder_width=24", "model.decoder_heads=3", "model.decoder_depth=1"),
    *("masking.mask_ratio=0.75", "teacher.token_ratio=0.5"),
)
GRID = TokenGrid(2, 4, 4)


def _config(*settings: str) -> PretrainConfig:
    return load_config(PretrainConfig, None, [*SMALL, *settings])


def _begun(
    folder: Path, init: Path, *settings: str
) -> tuple[PretrainConfig, HPM, Teacher | None, str]:
    """Settings, student and teacher of a run at its start, and what its log says of them."""
    config = _config(f"model.init={init}", *settings)
    start = find_start(config, folder / "new", kind="pretrain", total_steps=10)
    torch.manual_seed(1)
    student = build(config, trained_grid=start.trained_grid())
    start.load_into(student)
    teacher = teacher_of(student, config)
    start.load_teacher(teacher)
    return config, student, teacher, "\n".join(start.lines())


def _saved(folder: Path, *settings: str) -> tuple[Path, dict[str, Any]]:
    """A checkpoint with weights far from any initialisation, the teacher's unlike the student's."""
    config = _config(*settings)
    student = build(config)
    _randomize(student)
    teacher = teacher_of(student, config)
    if teacher is not None:
        _randomize(teacher, seed=1)
    state: dict[str, Any] = {"kind": "pretrain", "config": config_to_dict(config), "step": 7}
    state |= {"model": student.state_dict(), "optimizer": {}}
    state["teacher"] = None if teacher is None else teacher.state_dict()
    return save_checkpoint(folder / "saved", state, keep=1), state


@torch.no_grad()
def _randomize(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        scale = 0.3 if parameter.ndim == 1 or "mask_token" in name else 0.12
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))


def _clips(frames: int = 4, side: int = 32) -> Tensor:
    return torch.rand(2, 3, frames, side, side, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def _step(config: PretrainConfig, student: HPM, teacher: Teacher | None) -> PretrainStep:
    compute = configured_step(config, student.grid)
    generator = torch.Generator().manual_seed(5)
    return compute(student, teacher, _clips(), hard_ratio=0.5, generator=generator)


@pytest.mark.parametrize("predictor", ["encoded", "pixels", "both"])
@pytest.mark.parametrize("form", ["checkpoint", "exported"])
def test_own_weights_go_on_bit_for_bit(tmp_path: Path, predictor: str, form: str) -> None:
    """The same mask, by the same teacher, and the same losses."""
    chosen = f"model.predictor_input={predictor}"
    path, state = _saved(tmp_path, chosen)
    config = _config(chosen)
    student = build(config)
    student.load_state_dict(state["model"])
    teacher = teacher_of(student, config)
    assert teacher is not None
    teacher.load_state_dict(state["teacher"])
    if form == "exported":
        path = tmp_path / "exported.pt"
        assert main(["weights", "export", str(tmp_path / "saved"), "-o", str(path)]) == 0
    of, again, its_teacher, said = _begun(tmp_path, path, chosen)
    mine, theirs = _step(of, again, its_teacher), _step(config, student, teacher)
    assert torch.equal(mine.mask, theirs.mask)
    assert mine.losses.keys() == theirs.losses.keys()
    assert all(torch.equal(mine.losses[name], theirs.losses[name]) for name in mine.losses)
    assert re.search(r"teacher +the file's teacher +(\d+) of \1 +-$", said, re.M)
    assert not re.search("fresh|dropped", said)


def test_a_file_without_teacher_begins_with_a_copy(tmp_path: Path) -> None:
    _saved(tmp_path)
    path = tmp_path / "weights.safetensors"
    assert main(["weights", "export", str(tmp_path / "saved"), "-o", str(path)]) == 0
    _, student, teacher, said = _begun(tmp_path, path)
    assert teacher is not None
    own = student.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in teacher.state_dict().items())
    assert re.search(r"teacher +the student +0 of \d+ +a copy of the student: not in the f", said)


def test_a_run_goes_on_at_the_loss_it_had(tmp_path: Path, pretrain_arguments: Arguments) -> None:
    plain = ("loss.prediction=none", "masking.hard_ratio_end=0", "loss.normalize_targets=false")
    settings = (*plain, "optim.base_lr=0.2")
    assert main(pretrain_arguments(tmp_path / "one", *settings, "optim.epochs=8")) == 0
    init = f"model.init={tmp_path / 'one'}"
    assert main(pretrain_arguments(tmp_path / "two", *settings, init, "optim.base_lr=0.001")) == 0
    first, second = (read_records(tmp_path / name) for name in ("one", "two"))
    assert second[0]["loss"] < 1.3 * first[-1]["loss"] < 0.3 * first[0]["loss"]
    log = (tmp_path / "two" / "log.txt").read_text()
    assert "starts with weights of step 48 of" in log
    assert re.search(r"decoder +the file's decoder +19 of 19", log)
    table = (tmp_path / "two" / "init.txt").read_text().splitlines()[1:]
    own = load_checkpoint(tmp_path / "two")["model"]
    assert {line.split()[2] for line in table} == own.keys()
    assert {line.split()[0] for line in table} == {"loaded"}


def _foreign(**changes: Any) -> VideoMAEForPreTraining:
    """As released in kind, 16 frames of 224 x 224 pixels, small in width."""
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 96,
        "layer_norm_eps": 1e-6,
        "use_mean_pooling": False,
    }
    model = VideoMAEForPreTraining(VideoMAEConfig(**{**settings, **changes})).eval()
    _randomize(model)
    return model


def _officially(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the names of the official code, where q, k and v are one matrix."""
    names = {
        "videomae.embeddings.patch_embeddings.projection": "encoder.patch_embed.proj",
        "videomae.encoder.layer": "encoder.blocks",
        "videomae.layernorm": "encoder.norm",
        "decoder.decoder_layers": "decoder.blocks",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "attention.attention.query.bias": "attn.q_bias",
        "attention.attention.value.bias": "attn.v_bias",
        "attention.attention.q_bias": "attn.q_bias",
        "attention.attention.v_bias": "attn.v_bias",
        "attention.attention.query.weight": "attn.qkv.weight",
    }
    found = {}
    for name, value in weights.items():
        if name.endswith(("key.weight", "value.weight")):
            continue
        if name.endswith("query.weight"):
            parts = [weights[name.replace("query", of)] for of in ("query", "key", "value")]
            value = torch.cat(parts)  # noqa: PLW2901
        for theirs, official in names.items():
            name = name.replace(theirs, official)  # noqa: PLW2901
        found[name] = value
    return found


@torch.no_grad()
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("form", ["huggingface", "official"])
def test_others_weights_go_on_at_their_loss(tmp_path: Path, form: str, normalize: bool) -> None:
    theirs = _foreign(norm_pix_loss=normalize)
    path = tmp_path / "folder"
    if form == "huggingface":
        theirs.save_pretrained(path)
    else:
        path = tmp_path / "official.pth"
        torch.save({"model": _officially(theirs.state_dict()), "epoch": 799}, path)
    settings = (
        *("data.num_frames=16", "data.crop_size=224", "model.patch_size=16"),
        f"loss.normalize_targets={str(normalize).lower()}",
    )
    config, student, _, said = _begun(tmp_path, path, *settings)
    clips = _clips(16, 224)
    noise = torch.rand(2, 1568, generator=torch.Generator().manual_seed(4))
    mask = noise.argsort(dim=1).argsort(dim=1) < 1411
    mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    expected = theirs(((clips - mean) / std).transpose(1, 2), bool_masked_pos=mask).loss
    patches = patchify(clips, student.grid)
    found = token_losses(config.loss, student(clips, mask), patches, None).mean()
    assert abs(found - expected) < 1e-5 and expected > 0.1
    assert re.search(r"encoder +the file's encoder +30 of 30 +-$", said, re.M)
    assert re.search(r"decoder +the file's decoder +19 of 19 +-$", said, re.M)
    assert re.search(r"predictor +- +0 of \d+ +fresh: not in the file", said)
    assert "a copy of the student: not in the file" in said
    # The official code's default is what its files were trained with
    assert ("loss.normalize_targets (false) was true" in said) == (
        form == "official" and not normalize
    )
    assert ("16 frames, 224 pixels: not stored in the file" in said) == (form == "official")


CHANGES = [
    ("encoded", "both", {"predictor": "predictor"}, None),
    ("both", "encoded", {"predictor": "predictor"}, None),
    ("both", "pixels", {"predictor": "pixel_predictor"}, {"predictor": "pixel_predictor"}),
    ("pixels", "both", {"pixel_predictor": "predictor"}, {"pixel_predictor": "predictor"}),
    ("pixels", "encoded", {}, None),
    ("encoded", "pixels", {}, None),
]


@pytest.mark.parametrize(("before", "now", "taken", "taught"), CHANGES)
def test_other_predictors(
    tmp_path: Path,
    before: str,
    now: str,
    taken: dict[str, str],
    taught: dict[str, str] | None,
) -> None:
    """A predictor goes where one of its kind is asked for; the teacher's parts with it."""
    path, state = _saved(tmp_path, f"model.predictor_input={before}")
    _, student, teacher, said = _begun(tmp_path, path, f"model.predictor_input={now}")
    assert teacher is not None

    def of(weights: dict[str, Tensor], part: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(f"{part}."): value
            for name, value in weights.items()
            if name.startswith(f"{part}.")
        }

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)

    own = student.state_dict()
    for part in ("encoder", "decoder_input", "reconstructor"):
        assert same(of(own, part), of(state["model"], part))
    for part in ("predictor", "pixel_predictor"):
        there = [p for p in ("predictor", "pixel_predictor") if of(own, part)
                 and same(of(own, part), of(state["model"], p))]  # fmt: skip
        assert there == ([taken[part]] if part in taken else [])
    for part in {name.partition(".")[0] for name in teacher.state_dict()}:
        source = of(state["teacher"], taught[part]) if taught else of(own, part)
        assert same(of(teacher.state_dict(), part), source)
    lost = {"encoded": {"predictor"}, "pixels": {"predictor"},
            "both": {"predictor", "pixel_predictor"}}[before]  # fmt: skip
    assert len(re.findall("dropped: this run has no such part", said)) == len(
        lost - {*taken.values()}
    )


def test_a_plain_run_drops_what_it_has_no_use_for(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path)
    plain = ("loss.prediction=none", "masking.hard_ratio_end=0")
    _, _, teacher, said = _begun(tmp_path, path, *plain)
    assert teacher is None
    assert re.search(r"^predictor .*dropped: this run has no such part", said, re.M)
    assert re.search(r"^teacher .*dropped: this run has no such part", said, re.M)


def test_a_classifier_gives_its_encoder(tmp_path: Path) -> None:
    like = [s for s in SMALL if s.startswith(("data.", "model.")) and "decoder" not in s]
    config = load_config(FinetuneConfig, None, like)
    model = build(config, num_classes=3)
    _randomize(model)
    state = {"kind": "finetune", "config": config_to_dict(config), "step": 3, "num_classes": 3}
    state |= {"model": model.state_dict(), "classes": None, "trained_grid": [2, 4, 4]}
    path = save_checkpoint(tmp_path / "saved", state, keep=1)
    for parts in ("[encoder]", "[all]"):
        _, student, _, said = _begun(tmp_path, path, f"model.init_parts={parts}")
        own = student.state_dict()
        assert all(torch.equal(own[n], v) for n, v in model.state_dict().items() if n in own)
        assert "fresh, a classifier has none: encoder.norm.weight, encoder.norm.bias" in said
        assert re.search(r"decoder +- +0 of 19 +fresh: not in", said)


def test_clips_of_another_grid_get_the_trained_positions_interpolated(
    tmp_path: Path, pretrained: Path, pretrain_arguments: Arguments
) -> None:
    """And later readers of the run, and runs that go on from it, know them."""
    settings = ("data.num_frames=8", "optim.epochs=1", "optim.base_lr=0", "optim.min_lr=0")
    arguments = pretrain_arguments(tmp_path / "run", f"model.init={pretrained}", *settings)
    assert main(arguments) == 0
    assert main(arguments) == 0  # its end
    log = (tmp_path / "run" / "log.txt").read_text()
    words = r"positions of 2 x 4 x 4 tokens interpolated to 4 x 4 x 4 tokens"
    assert re.search(rf"^\S+ encoder .*{words}", log, re.M)
    assert re.search(rf"^\S+ decoder .*{words}", log, re.M)
    flat = position_table(GRID, 32)
    expected = interpolate_tokens(flat.double(), GRID, TokenGrid(4, 4, 4)).float()
    student = load_pretrained(tmp_path / "run").student
    for part in (student.encoder, student.decoder_input):
        assert (part.positions - expected).abs().max() < 1e-6
    before = load_checkpoint(pretrained)["model"]
    assert all(torch.equal(value, before[n]) for n, value in student.state_dict().items())
    back = main(pretrain_arguments(tmp_path / "back", f"model.init={tmp_path / 'run'}"))
    assert back == 0
    student = load_pretrained(tmp_path / "back").student
    assert torch.equal(student.encoder.positions, flat)
    assert torch.equal(student.decoder_input.positions, flat)


@torch.no_grad()
def test_tokens_of_another_size_are_reconstructed_resized(tmp_path: Path) -> None:
    path, state = _saved(tmp_path)
    twice = ("model.patch_size=16", "data.crop_size=64")
    _, student, _, said = _begun(tmp_path, path, *twice)
    small = build(_config())
    small.load_state_dict(state["model"])
    features = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    mine, theirs = (
        model.reconstructor.head(features).unflatten(1, (2, side, side, 3)).movedim(-1, 1)
        for model, side in ((student, 16), (small, 8))
    )
    expected = F.interpolate(theirs, size=(2, 16, 16), mode="trilinear", align_corners=False)
    assert (mine - expected).abs().max() < 1e-5
    assert "head of 2 x 8 x 8 pixels resampled to 2 x 16 x 16 pixels" in said
    assert "patch embedding of 2 x 8 x 8 pixels resampled" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("model.decoder_width=48", "model.decoder_depth=2"),
         "model.decoder_width (48) must be 24, model.decoder_depth (2) must be 1, as in the weights"
         " of model.init (PATH): add model.decoder_width=24 model.decoder_depth=1, or "
         "model.init_parts=[encoder] to start the other parts fresh"),
        (("model.decoder_heads=2", "model.heads=4", "model.positions=stored"),
         "model.heads (4) must be 2, model.positions (stored) must be sinusoid, "
         "model.decoder_heads (2) must be 3, as in the weights of model.init (PATH): add "
         "model.heads=2 model.positions=sinusoid model.decoder_heads=3"),
        (("model.predictor_depth=2",),
         "add model.predictor_depth=1, or model.init_parts=[encoder,decoder,teacher] to start"),
        (("model.size=giant",), "model.size (giant) must be base, as in"),
        (("loss.target=ema",), "loss.target (ema) must be pixels, as in"),
        (("loss.target=frozen", "loss.target_model=a.pt", "loss.target_width=8"),
         "loss.target (frozen) must be pixels, loss.target_model (a.pt) must be null, as in"),
        (("model.size=giant", "model.width=32", "model.decoder_mlp_ratio=4"),
         "model.size (giant) must be base, as in"),
    ],
)  # fmt: skip
def test_sizes_that_differ_are_named_with_what_to_set(
    tmp_path: Path, settings: tuple[str, ...], words: str
) -> None:
    path, _ = _saved(tmp_path)
    with pytest.raises(ValueError, match=re.escape(words.replace("PATH", str(path)))) as caught:
        _begun(tmp_path, path, *settings)
    assert "\n" not in str(caught.value)


def test_parts_start_fresh_where_that_is_asked_for(tmp_path: Path) -> None:
    path, state = _saved(tmp_path)
    other = ("model.decoder_width=48", "model.init_parts=[encoder]")
    _, student, teacher, said = _begun(tmp_path, path, *other)
    assert teacher is not None and teacher.encoder is not None
    assert torch.equal(student.encoder.norm.weight, state["model"]["encoder.norm.weight"])
    assert torch.equal(teacher.encoder.norm.weight, student.encoder.norm.weight)
    assert len(re.findall("not in model.init_parts", said)) == 3
    parts = "model.init_parts=[encoder,decoder,teacher]"
    _, _, teacher, said = _begun(tmp_path, path, "model.predictor_depth=2", parts)
    assert teacher is not None and teacher.encoder is not None
    there = state["teacher"]["encoder.norm.weight"]
    assert torch.equal(teacher.encoder.norm.weight, there)
    assert "predictor as in the student: not in model.init_parts" in said
    for wrong in ("[decoder]", "[encoder,decoders]", "[encoder,encoder]", "[all,encoder]"):
        with pytest.raises(ValueError, match="must be all, or encoder with any of decoder"):
            _config(f"model.init_parts={wrong}")


def test_a_damaged_teacher_is_refused(tmp_path: Path) -> None:
    _, state = _saved(tmp_path)
    state["teacher"]["encoder.norm.bias"][0] = torch.nan
    path = save_checkpoint(tmp_path / "nan", state, keep=1)
    with pytest.raises(ValueError, match=r"teacher of .*encoder.norm.bias has values that are not"):
        _begun(tmp_path, path)
    del state["teacher"]["encoder.norm.bias"]
    path = save_checkpoint(tmp_path / "lacks", state, keep=1)
    with pytest.raises(ValueError, match=r"teacher of .*encoder.norm.bias is missing"):
        _begun(tmp_path, path)


def _copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder, symlinks=True)
    return folder


def test_a_finished_run_goes_on_to_more_epochs(
    tmp_path: Path,
    pretrained: Path,
    pretrain_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = _copied(pretrained, tmp_path / "run")
    (run / "bad_videos.csv").write_text("path,reason\n")
    before = (run / "metrics.jsonl").read_text()
    log = run / "log.txt"
    assert main(pretrain_arguments(run)) == 0
    assert "its end: to train further, set optim.epochs=3 or more" in log.read_text()
    assert main(pretrain_arguments(run, "optim.epochs=4")) == 0
    assert "changed: optim.epochs: 2 -> 4" in log.read_text()
    # Of a cosine from 1e-3 to 1.6e-7: at its last step of 12 then, half-way now
    jumps = r"jumps at step 13: learning rate 1.719e-05 -> 0.0005\d*, hard ratio 1 -> 0.5417"
    assert re.search(jumps, log.read_text())
    assert (run / "metrics.jsonl").read_text().startswith(before)
    records = read_records(run)
    assert [record["step"] for record in records] == list(range(2, 25, 2))
    assert (run / "bad_videos.csv").exists()
    for settings, key in (((), "optim.epochs"), (("optim.epochs=5", "run.seed=1"), "run.seed")):
        capsys.readouterr()
        assert main(pretrain_arguments(run, *settings)) == 2
        said = capsys.readouterr().err
        assert f"other settings ({key})" in said and f"run.resume={run} continues from" in said


def test_a_finished_fine_tuning_goes_on_to_more_epochs(
    tmp_path: Path, finetune_arguments: Arguments
) -> None:
    run = tmp_path / "run"
    for epochs in (1, 2):
        assert main(finetune_arguments(run, f"optim.epochs={epochs}")) == 0
    log = (run / "log.txt").read_text()
    assert "changed: optim.epochs: 1 -> 2" in log and "jumps at step 7: learning rate" in log
    assert [record["step"] for record in read_records(run)] == list(range(2, 13, 2))


def test_a_resume_tells_what_is_changed_and_what_jumps(
    tmp_path: Path, pretrained: Path, pretrain_arguments: Arguments
) -> None:
    changed = (
        *("optim.epochs=4", "optim.weight_decay=0.1", "teacher.momentum_end=0.9995"),
        *("masking.hard_ratio_end=0.6", "run.log_every=3"),
    )
    run = tmp_path / "run"
    assert main(pretrain_arguments(run, f"run.resume={pretrained}", *changed)) == 0
    log = (run / "log.txt").read_text()
    for line in (
        *("optim.epochs: 2 -> 4", "optim.weight_decay: 0.05 -> 0.1"),
        *("teacher.momentum_end: 0.9999 -> 0.9995", "masking.hard_ratio_end: 1.0 -> 0.6"),
    ):
        assert f" changed: {line}\n" in log
    assert log.count(" changed: ") == 4  # not how often it logs
    assert re.search(
        r"jumps at step 13: learning rate \S+ -> \S+, weight decay 0.05 -> 0.1, "
        r"hard ratio 1 -> 0.325, EMA momentum 0.9999 -> 0.9995\n",
        log,
    )


def test_what_is_as_before_is_no_change(pretrained: Path) -> None:
    state = {**load_checkpoint(pretrained), "step": 5}
    config = load_config(PretrainConfig, pretrained / "config.yaml")
    steps = divided(config.data, config.optim, videos=4, num_videos=24)
    assert describe_changes(config, state, steps=steps) == []
    assert describe_changes(config, None, steps=steps) == []
    waits = replace(config, masking=replace(config.masking, ramp="competence"))
    lines = describe_changes(waits, state, steps=steps)
    assert lines == ["changed: masking.ramp: time -> competence",
                     "jumps at step 6: hard ratio 0.5 -> 0"]  # fmt: skip
