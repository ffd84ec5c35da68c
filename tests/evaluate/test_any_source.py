"""A model in each form that it leaves in: every command that takes it gives the same of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import hpm_video
from hpm_video.cli.main import main
from hpm_video.config import EvaluateConfig
from hpm_video.evaluate.frozen_encoder import load_backbone
from hpm_video.evaluate.predict import predict, videos_of
from hpm_video.evaluate.pretrained import load_pretrained
from hpm_video.evaluate.relevance import load_onlooker
from hpm_video.weights.foreign.stored_model import read_model

Arguments = Callable[..., list[str]]

FORMS = ("huggingface", "safetensors", "checkpoint")


def _export(source: Path, to: str, folder: Path, *options: str) -> str:
    output = folder / {"safetensors": "w.safetensors", "checkpoint": "w.pt"}.get(to, "exported")
    assert main(["weights", "export", str(source), "--to", to, "-o", str(output), *options]) == 0
    return str(output)


@pytest.fixture(scope="module")
def classifier(
    tmp_path_factory: pytest.TempPathFactory, finetune_arguments: Arguments, pretrained: Path
) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    assert main(finetune_arguments(folder, f"model.init={pretrained}", "optim.epochs=1")) == 0
    return folder


@pytest.fixture
def one(toy: Path) -> Path:
    """A video."""
    return sorted(toy.parent.rglob("*.mp4"))[0]


@pytest.mark.parametrize("to", FORMS)
def test_a_classifier_gives_the_same_in_every_form(
    tmp_path: Path, classifier: Path, pretrained: Path, one: Path, to: str
) -> None:
    exported = _export(classifier, to, tmp_path)
    config = EvaluateConfig(device="cpu", precision="float32", num_workers=0)
    places = videos_of([str(one)], [])
    scores = [predict(model, places, config).scores for model in (classifier, exported)]
    np.testing.assert_allclose(*scores, atol=1e-6)
    named = [hpm_video.classify(one, checkpoint=m, device="cpu") for m in (classifier, exported)]
    assert sorted(named[1].values()) == pytest.approx(sorted(named[0].values()), abs=1e-6)
    features = [hpm_video.embed(one, checkpoint=m, device="cpu") for m in (classifier, exported)]
    np.testing.assert_allclose(*features, atol=1e-5)
    beside = load_pretrained(pretrained)
    weights = [load_onlooker(m, beside).model.state_dict() for m in (classifier, exported)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("to", FORMS)
def test_a_pre_training_shows_the_same_in_every_form(
    tmp_path: Path, pretrained: Path, one: Path, to: str
) -> None:
    exported = _export(pretrained, to, tmp_path)
    mine, theirs = load_pretrained(pretrained).student, load_pretrained(exported).student
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, mine.state_dict()[name]), name
    assert np.isfinite(hpm_video.hard_tubes(exported, one, device="cpu").scores).all()


def test_an_exported_folder_says_which_frames(tmp_path: Path, classifier: Path) -> None:
    exported = Path(_export(classifier, "huggingface", tmp_path))
    mine = read_model(classifier, kind="finetune").state["config"]["data"]
    found = read_model(exported, kind="finetune")
    names = ("sampling", "frame_stride", "fps", "antialias")
    assert {n: found.state["config"]["data"][n] for n in names} == {n: mine[n] for n in names}
    assert found.notes == ()
    # transformers keeps it
    transformers.AutoModel.from_pretrained(exported).save_pretrained(tmp_path / "again")
    kept = json.loads((tmp_path / "again" / "config.json").read_text())
    assert kept["hpm_video"] == {n: mine[n] for n in names}


@pytest.mark.parametrize("wrong", [{"frame_stride": 0}, {"sampling": "all"}, {"size": 2}, [1]])
def test_wrong_frames_in_a_folder_get_one_line(
    tmp_path: Path, classifier: Path, wrong: object
) -> None:
    file = Path(_export(classifier, "huggingface", tmp_path)) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hpm_video": wrong}))
    with pytest.raises(ValueError, match="hpm_video") as caught:
        read_model(file.parent, kind="finetune")
    assert "\n" not in str(caught.value)


def test_frames_that_nobody_told_are_named(
    tmp_path: Path, classifier: Path, one: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(_export(classifier, "huggingface", tmp_path)) / "config.json"
    settings = json.loads(file.read_text())
    del settings["hpm_video"]
    file.write_text(json.dumps(settings))
    capsys.readouterr()
    command = ["predict", str(file.parent), str(one), "device=cpu", "num_workers=0"]
    assert main(command) == 0
    assert "of its settings; assumed: sampling dense, frame_stride 2" in capsys.readouterr().err
    assert main([*command, "clip.frame_stride=1", "clip.sampling=dense"]) == 0
    assert "assumed" not in capsys.readouterr().err
    with pytest.warns(UserWarning, match="of its settings; assumed: sampling dense"):
        hpm_video.classify(one, checkpoint=file.parent, device="cpu")


def test_an_encoder_without_a_norm_is_taken_as_it_is(
    tmp_path: Path, classifier: Path, one: Path
) -> None:
    encoder = _export(classifier, "huggingface", tmp_path, "--encoder")
    mine = load_backbone(classifier, precision="float32")
    theirs = load_backbone(encoder, precision="float32")
    assert theirs.data.frame_stride == mine.data.frame_stride
    side = mine.data.crop_size
    clips = torch.rand(1, 3, mine.data.num_frames, side, side)
    torch.testing.assert_close(theirs.backbone.encode(clips), mine.backbone.encode(clips))
    with pytest.raises(ValueError, match="must hold a classifier"):
        hpm_video.classify(one, checkpoint=encoder)


def test_embed_asks_a_model_of_others_with_settings(tmp_path: Path, one: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    settings = ["clip.num_frames=2", "clip.frame_stride=1"]
    colours = ["encoder.mean=[0.5,0.5,0.5]", "encoder.std=[0.5,0.5,0.5]"]
    ask: dict[str, Any] = {"checkpoint": tmp_path / "dino", "device": "cpu"}
    with pytest.raises(ValueError, match=r"add clip\.num_frames=16"):
        hpm_video.embed(one, **ask)
    feature = hpm_video.embed(one, **ask, settings=[*settings, *colours])
    assert feature.shape == (24,)
    first = hpm_video.embed(one, **ask, settings=[*settings, *colours, "encoder.layers=[0]"])
    assert not np.allclose(feature, first)
    with pytest.raises(ValueError, match="frame_strid"):
        hpm_video.embed(one, **ask, settings=["clip.frame_strid=2"])


def test_a_model_of_timm_is_no_classifier(one: Path) -> None:
    model = "timm:vit_tiny_patch16_224"
    for ask in (
        lambda: hpm_video.classify(one, checkpoint=model),
        lambda: hpm_video.hard_tubes(model, one),
        lambda: read_model(model, kind="finetune"),
    ):
        with pytest.raises(
            ValueError, match=r"is only an encoder; use it with hpm-video probe, hpm-video features"
        ):
            ask()
