"""Probes and features of encoders of other projects, through the commands: their features are those
of their own library on the frames of real videos."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from processes import run_together
from safetensors.torch import save_file
from torch import Tensor

from hpm_video.cli.main import main
from hpm_video.config import FrozenEncoderConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.video import crops
from hpm_video.data.video.frames import read_frames
from hpm_video.evaluate.feature_file import read_features
from hpm_video.evaluate.frozen_encoder import load_backbone

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8,
}  # fmt: skip
PLAIN = ["device=cpu", "precision=float32", "num_workers=0"]
# 4 frames, every second one: of 12, in the middle
CLIP = ["clip.num_frames=4", "clip.frame_stride=2"]
FRAMES = np.array([2, 4, 6, 8])
VIT = "vit_tiny_patch16_224"


def _vjepa2() -> Any:
    config = transformers.VJEPA2Config(
        **SIZES, crop_size=32, tubelet_size=2, frames_per_clip=8, pred_hidden_size=16,
        pred_num_attention_heads=2, pred_num_hidden_layers=1,
    )  # fmt: skip
    return transformers.VJEPA2Model(config)


def _videomae() -> Any:
    config = transformers.VideoMAEConfig(
        **SIZES, image_size=32, num_frames=4, intermediate_size=128, use_mean_pooling=False
    )
    return transformers.VideoMAEModel(config)


def _clip() -> Any:
    config = transformers.CLIPVisionConfig(**SIZES, image_size=32, intermediate_size=64)
    return transformers.CLIPVisionModel(config)


def _dinov2() -> Any:
    return transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, image_size=32))


MODELS = {"vjepa2": _vjepa2, "dinov2": _dinov2, "clip": _clip, "videomae": _videomae}


def _save(model: Any, folder: Path) -> str:
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    preprocessor = {"image_mean": MEAN, "image_std": STD, "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return str(folder)


@pytest.fixture(scope="module")
def vjepa2(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return _save(_vjepa2(), tmp_path_factory.mktemp("models") / "vjepa2")


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory, toy: Path) -> tuple[str, str]:
    """16 videos to learn from, one of which is none, and 8 to judge."""
    folder, manifest = tmp_path_factory.mktemp("lists"), read_manifest(toy)
    (folder / "broken.mp4").write_bytes(b"no video")
    rows = [f"{manifest.path(i)},{manifest.label(i)}" for i in range(24)]
    rows.insert(3, f"{folder / 'broken.mp4'},3")
    for name, part in (("train", rows[:17]), ("val", rows[17:])):
        (folder / f"{name}.csv").write_text("\n".join(["path,label", *part]) + "\n")
    return str(folder / "train.csv"), str(folder / "val.csv")


def _normalised(path: str, mean: list[float] = MEAN, std: list[float] = STD) -> Tensor:
    """The frames of a video as those libraries want them, (T, 3, H, W): no pixel is resized."""
    frames = torch.as_tensor(read_frames(path, FRAMES)).double() / 255
    return ((frames - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).float()


def _theirs(kind: str, model: Any, pixels: Tensor) -> Tensor:
    """Tokens (N, D) that the library itself gives, after the final norm."""
    if kind == "vjepa2":
        return model.get_vision_features(pixels[None])[0]
    if kind == "videomae":
        return model(pixels[None]).last_hidden_state[0]
    tokens = model(pixels).last_hidden_state[:, 1:]
    return (model.post_layernorm(tokens) if kind == "clip" else tokens).flatten(0, 1)


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_features_are_those_of_their_own_library(kind: str, tmp_path: Path, toy: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    for weight in model.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    path, output = _save(model, tmp_path / kind), tmp_path / "features.npz"
    manifest = read_manifest(toy)
    command = ["features", path, "--manifest", str(toy), "-o", str(output), *PLAIN, *CLIP]
    assert main(command) == 0
    arrays, metadata = read_features(output)
    for index in (0, 5, 23):
        expected = _theirs(kind, model, _normalised(manifest.path(index))).mean(dim=0)
        assert np.abs(arrays["features"][index] - expected.numpy()).max() < 1e-4
    assert np.abs(arrays["features"][0] - arrays["features"][1]).max() > 1e-3
    assert metadata["checkpoint"] == path and metadata["step"] is None

    windows = tmp_path / "windows.npz"
    video = ["--video", manifest.path(5), "--window", "4", "--frame-stride", "2", "--stride", "2"]
    assert main(["features", path, *video, "--per-step", "-o", str(windows), *PLAIN]) == 0
    arrays, _ = read_features(windows)
    (row,) = (place for place, f in enumerate(arrays["frames"]) if f.tolist() == FRAMES.tolist())
    tokens = _theirs(kind, model, _normalised(manifest.path(5)))
    steps = tokens.unflatten(0, (arrays["step_features"].shape[1], -1)).mean(dim=1)
    assert len(steps) == (2 if kind in ("vjepa2", "videomae") else 4)
    assert np.abs(arrays["step_features"][row] - steps.numpy()).max() < 1e-4


@torch.no_grad()
def test_a_timm_model_sees_its_own_normalisation_or_the_one_given(
    tmp_path: Path, lists: tuple[str, str]
) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(VIT, pretrained=False).eval()
    weights = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), weights)
    path = read_manifest(lists[0]).path(0)
    own, found = (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]), []
    for number, (colours, settings) in enumerate(
        ((own, []), ((MEAN, STD), [f"encoder.mean={MEAN}", f"encoder.std={STD}"]))
    ):
        output = tmp_path / f"{number}.npz"
        command = ["features", f"timm:{VIT}", "--video", path, "-o", str(output), *PLAIN, *CLIP]
        assert main([*command, f"encoder.weights={weights}", *settings]) == 0
        arrays, _ = read_features(output)
        small = read_frames(path, arrays["frames"][0])
        large = crops.resize_crop(small, crops.view_crops(32, 32, num_crops=1)[0], 224)
        frames = torch.as_tensor(large).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(each)[:, None, None] for each in colours)
        expected = model.forward_features((frames / 255 - mean) / std)[:, 1:].mean(dim=(0, 1))
        assert np.abs(arrays["features"][0] - expected.numpy()).max() < 1e-4
        found.append(arrays["features"][0])
    assert np.abs(found[0] - found[1]).max() > 1e-2


@torch.no_grad()
def test_layers_follow_each_other(vjepa2: str, pretrained: Path) -> None:
    """As more tokens of a clip, and side by side in its feature; of theirs and of ours."""
    from hpm_video.config import ClipConfig

    clip = ClipConfig(num_frames=4, frame_stride=2)
    clips = torch.rand(2, 3, 4, 32, 32)
    for model, asked in ((vjepa2, [0, 2]), (str(pretrained), [0, -1])):
        settings = FrozenEncoderConfig(layers=asked)
        both, one, other = (
            load_backbone(model, precision="float32", clip=clip, settings=each).backbone
            for each in (settings, *(FrozenEncoderConfig(layers=[layer]) for layer in asked))
        )
        found = both.encode(clips)
        expected = [each.encode(clips) for each in (one, other)]
        torch.testing.assert_close(found, torch.cat(expected, dim=1))
        assert (expected[0] - expected[1]).abs().max() > 1e-2
        assert both.num_tokens == found.shape[1] == 2 * one.num_tokens
        for name, values in (("pooled", ((2, 1, 2),)), ("steps", ())):
            mine = getattr(both, name)(found, *values)
            apart = [
                getattr(each, name)(tokens, *values)
                for each, tokens in zip((one, other), expected, strict=True)
            ]
            torch.testing.assert_close(mine, torch.cat(apart, dim=-1))
        assert both.feature_width == 2 * both.width


def _probe(model: str, lists: tuple[str, str], *words: str) -> list[str]:
    train, val = lists
    settings = ["probe.linear_epochs=5", "probe.grid.epochs=2", "probe.grid.blocks=2"]
    settings += ["probe.grid.lrs=[1e-3]", "probe.grid.weight_decays=[0.01, 0.1]"]
    return ["probe", model, "--train", train, "--val", val, *PLAIN, *CLIP, *settings, *words]


def test_encoders_stand_beside_each_other(
    vjepa2: str,
    pretrained: Path,
    lists: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "results.json"
    kinds = ["--kind", "knn", "attentive_grid", "-o", str(output)]
    assert main(_probe(str(pretrained), lists, *kinds)) == 0
    assert main(_probe(vjepa2, lists, *kinds, "probe.num_crops=2")) == 0
    said = capsys.readouterr().out
    rows = json.loads(output.read_text())
    assert [(row["model"], row["kind"]) for row in rows] == [
        (model, kind) for model in (str(pretrained), vjepa2) for kind in ("knn", "attentive_grid")
    ]
    assert [row["encoder"] for row in rows] == [*["pretrain, step 12"] * 2] + [
        "transformers vjepa2"
    ] * 2
    assert [point["weight_decay"] for point in rows[3]["grid"]] == [0.01, 0.1]
    assert (
        rows[3]["clips"] == "4 x 32 x 32 dense stride 2, 1 x 2" and rows[3]["num_unreadable"] == 1
    )
    table = said.split("\n\n")[-1].splitlines()
    assert table[0].split() == ["model", "kind", "top1", "balanced", "clips", "hyperparameters"]
    assert len(table) == 6 and table[-1] == str(output)
    for row in rows:
        (line,) = (t for t in table if t.startswith(row["model"]) and f" {row['kind']} " in t)
        assert f" {row['top1']:.4f} " in line and row["how"] in line
    # The same again takes the place of the same; other settings do not
    assert main(_probe(vjepa2, lists, "-o", str(output), "probe.num_crops=2")) == 0
    assert main(_probe(vjepa2, lists, "-o", str(output))) == 0
    assert len(json.loads(output.read_text())) == 5
    capsys.readouterr()
    others = lists[1], lists[1]
    assert main(_probe(vjepa2, others, "-o", str(output))) == 2
    assert "holds results for another --train (" in capsys.readouterr().err
    output.write_text('{"a": 1}')
    assert main(_probe(vjepa2, lists, "-o", str(output))) == 2
    assert "must hold results of probes; choose another file" in capsys.readouterr().err


def _figures(said: str) -> list[str]:
    return re.findall(r"top1 \S+  balanced_accuracy \S+  \(.*\)", said)


def test_tokens_on_disk_are_read_again(
    vjepa2: str,
    lists: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same figures as from memory, one unreadable video being left out; and, when they are
    read again, without encoding anything."""
    from hpm_video.evaluate.frozen_encoder import Backbone

    kinds = ["--kind", "attentive", "attentive_grid", "probe.attentive_epochs=1"]
    command = _probe(vjepa2, lists, *kinds)
    assert main(command) == 0
    in_memory = capsys.readouterr().out
    cached = [*command, f"probe.cache={tmp_path / 'cache'}"]
    assert main(cached) == 0
    written = capsys.readouterr().out
    assert _figures(written) == _figures(in_memory) and written.count("tokens were written") == 2
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "encode", None)
        assert main([*cached, "probe.grid.epochs=2"]) == 0
    again = capsys.readouterr().out
    assert _figures(again) == _figures(in_memory) and again.count("tokens were read") == 2
    assert again.count("broken.mp4") == 1
    for changed in ("clip.frame_stride=1", "encoder.layers=[1]", f"encoder.mean={STD}"):
        more = [changed, f"encoder.std={STD}"] if "mean" in changed else [changed]
        assert main([*cached, *more]) == 0
        assert capsys.readouterr().out.count("tokens were written") == 2, changed
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".tmp"]
    first, second = run_together(2, [cached])
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert _figures(first.stdout) == _figures(in_memory) and not second.stdout


def test_more_crops_to_judge_than_to_learn_from(
    vjepa2: str, lists: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--kind", "attentive_grid", "probe.num_crops=3", "probe.train_crops=1"]
    assert main(_probe(vjepa2, lists, *words)) == 0
    capsys.readouterr()
    # 16 tokens of 2 steps in time: 17 lists' videos of 1 view, 8 of 3, of 32 float16 each
    assert main(_probe(vjepa2, lists, *words, "probe.most_token_gb=1e-9")) == 2
    assert "must be at least 0.1" in capsys.readouterr().err


def _line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_not_known_is_asked_for(
    vjepa2: str, lists: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = lists

    def line(model: str, *words: str) -> str:
        return _line(capsys, "probe", model, "--train", train, "--val", val, *PLAIN, *words)

    dino = _save(_dinov2(), tmp_path / "dinov2")
    refused = line(dino)
    assert "does not store which frames" in refused
    assert "add clip.num_frames=16 clip.frame_stride=4 (or clip.fps=8, or clip.samp" in refused
    assert "add clip.frame_stride=4 (or" in line(vjepa2)  # whose folder knows the length of clips
    assert "clip.num_frames=16, or other" in line(f"timm:{VIT}", "clip.sampling=uniform")
    mae = _save(_videomae(), tmp_path / "videomae")
    assert "add clip.frame_stride=4 (or" in line(mae)
    assert (
        main(["probe", mae, "--train", train, "--val", val, *PLAIN, "clip.sampling=uniform"]) == 0
    )
    assert main(["probe", vjepa2, "--train", train, "--val", val, *PLAIN, "clip.fps=6"]) == 0
    kept = [*CLIP, "--kind", "linear", "--keep", str(tmp_path / "kept")]
    assert "must be a checkpoint of hpm-video for --keep" in line(vjepa2, *kept)
    assert "needs a weight file" in line(f"timm:{VIT}", *CLIP)
    assert "must be left out" in line(vjepa2, *CLIP, "encoder.weights=x")
    assert "clip.patch_size (4) must be left out" in line(vjepa2, *CLIP, "clip.patch_size=4")
    assert "clip.crop_size (48) must be 32" in line(vjepa2, *CLIP, "clip.crop_size=48")
    assert "clip.crop_size (36) must be a multiple" in line(dino, *CLIP, "clip.crop_size=36")
    assert "clip.num_frames (5) must be a multiple" in line(vjepa2, *CLIP, "clip.num_frames=5")
    assert "encoder.layers ([3]) must name blocks" in line(vjepa2, *CLIP, "encoder.layers=[3]")
    assert "given together" in line(vjepa2, *CLIP, f"encoder.mean={MEAN}")
    assert "--train (none)" in _line(capsys, "probe", vjepa2, "--val", val)
    (tmp_path / "dinov2" / "preprocessor_config.json").unlink()
    assert "encoder.mean and encoder.std" in line(dino, *CLIP)
    colours = [f"encoder.mean={MEAN}", f"encoder.std={STD}"]
    assert main(["probe", dino, "--train", train, "--val", val, *PLAIN, *CLIP, *colours]) == 0
    save_file(timm.create_model(VIT).state_dict(), tmp_path / "image.safetensors")
    refused = line(str(tmp_path / "image.safetensors"), *CLIP)
    assert "is an image model; name its architecture too" in refused


def _vjepa_weights() -> dict[str, Tensor]:
    """By the names of the released files, each without numbers that matter."""
    shapes = {"norm1": (8,), "norm2": (8,), "attn.qkv": (24, 8), "attn.proj": (8, 8)}
    shapes |= {"mlp.fc1": (32, 8), "mlp.fc2": (8, 32)}
    layers = {
        f"blocks.{block}.{name}": shape for block in range(2) for name, shape in shapes.items()
    }
    layers |= {"patch_embed.proj": (8, 3, 2, 16, 16), "norm": (8,)}
    return {
        f"module.backbone.{name}.{part}": torch.zeros(shape if part == "weight" else shape[:1])
        for name, shape in layers.items()
        for part in ("weight", "bias")
    }


def test_a_file_of_vjepa_is_refused_for_what_it_is(
    vjepa2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = _vjepa_weights()
    first = weights | {"module.backbone.pos_embed": torch.zeros(1, 1568, 8)}
    for name, content in (
        ("vitl.pt", {"encoder": weights, "target_encoder": weights, "predictor": {}, "epoch": 1}),
        ("encoder.pt", {"encoder": weights}),
        ("plain.pt", weights),
    ):
        torch.save(content, tmp_path / name)
        (tmp_path / "list.csv").write_text("path,label\nx.mp4,0\n")
        (tmp_path / "x.mp4").touch()
        probe = ["probe", str(tmp_path / name)]
        for option in ("--train", "--val"):
            probe += [option, str(tmp_path / "list.csv")]
        for command in (["weights", "inspect", str(tmp_path / name)], probe):
            refused = _line(capsys, *command)
            assert "are of V-JEPA 2, which cannot be imported" in refused
            assert "convert_vjepa2_to_hf.py" in refused
    torch.save({"target_encoder": first}, tmp_path / "first.pt")
    refused = _line(capsys, "weights", "inspect", str(tmp_path / "first.pt"))
    assert "of the first V-JEPA" in refused and "nor transformers supports" in refused
    assert "are of a Hugging Face model of type vjepa2" in _line(
        capsys, "weights", "inspect", vjepa2
    )
