"""`hpm-video demo`: the page of the shipped clip, and what `--train` runs."""

import re
import sys
import webbrowser
from pathlib import Path

import pytest

from hpm_video.cli import demo as demo_module
from hpm_video.cli.demo import Scale
from hpm_video.cli.demo_clip import CLIP, MODEL, open_page
from hpm_video.cli.main import main
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.evaluate.pretrained import load_pretrained
from hpm_video.train import pretrain as pretraining
from hpm_video.visualize import Result, View, watch
from hpm_video.visualize.verdict import RULE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("how", ["--train", "--quick"])
def test_it_takes_its_own_recipes_and_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """And no file of the current folder that has the name of one."""
    monkeypatch.chdir(tmp_path)
    for name in ("pretrain", "finetune"):
        Path(name).touch()
    asked: list[PretrainConfig] = []

    def stop(config: PretrainConfig) -> bool:
        asked.append(config)
        return False

    for scale in ("FULL", "QUICK"):
        monkeypatch.setattr(demo_module, scale, Scale(4, 2, 2, 1))
    monkeypatch.setattr(pretraining, "pretrain", stop)
    assert main(["demo", how, "--device", "cpu", "--seed", "3"]) == 1
    (config,) = asked
    recipe = load_config(PretrainConfig, ROOT / "configs" / "demo" / "pretrain.yaml")
    assert (config.model, config.optim, config.masking) == (
        recipe.model,
        recipe.optim,
        recipe.masking,
    )
    assert (config.run.device, config.run.seed) == ("cpu", 3)


def test_a_seed_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--seed", "1"]) == 2
    assert "--seed (1) must come with --train" in capsys.readouterr().err


def test_it_shows_the_shipped_clip_and_how_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no browser without a terminal")

    monkeypatch.setattr(webbrowser, "open", refuse)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--device", "cpu"]) == 0
    *_, said = (lines := capsys.readouterr().out.splitlines())
    assert any("hpm-video demo --train" in line for line in lines)
    page = (tmp_path / said).read_text()
    assert page.count("data:image/jpeg") >= 16  # the clip, and what is reconstructed of it
    for name in ("predicted", "measured", "spearman", "rankAccuracy"):
        assert f'"{name}":' in page
    assert "http" not in re.sub(r"http-equiv|base64,[^\"]*", "", page)  # it needs no network


def test_the_shipped_model_ranks_the_shipped_clip() -> None:
    """And names no folder of the machine on which it was trained."""
    pretrained = load_pretrained(MODEL)
    ((tubes,),) = watch(pretrained, CLIP, view=View()).windows
    assert tubes.spearman is not None and tubes.spearman > 0.4
    assert tubes.rank_accuracy is not None and tubes.rank_accuracy > 0.6
    assert (pretrained.config.run.output_dir, pretrained.config.data.manifest) == (None, [])
    assert MODEL.stat().st_size < 1e6 and CLIP.stat().st_size < 1e5


@pytest.mark.parametrize("is_quick", [False, True])
def test_the_page_of_training_says_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_quick: bool
) -> None:
    monkeypatch.setattr(demo_module, "_curves", lambda runs: [])
    result = Result("a/b c.mp4", tmp_path / "b c.html", 0.7, 0.31, thumbnail="data:image/png,x")
    other = Result("d/b c.mp4", tmp_path / "b c_2.html", 0.7, 0.31, thumbnail="data:image/png,y")
    demo_module.write_page(tmp_path, [], {}, [result], minutes=1, is_quick=is_quick)
    text = (tmp_path / "index.html").read_text()
    assert ("nothing is learnt" in text) == is_quick
    (card,) = re.findall(r"<article.*?</article>", text, re.DOTALL)
    assert 'href="pictures/b%20c.html"' in card and 'src="data:image/png,x"' in card
    assert ">b c.mp4</h3>" in card and "fair" in card and "Spearman 0.31<" in card
    assert RULE in text
    demo_module.write_page(tmp_path, [], {}, [result, other], minutes=1, is_quick=is_quick)
    names = re.findall(r"<h3>(.*?)</h3>", (tmp_path / "index.html").read_text())
    assert names == ["a/b c.mp4", "d/b c.mp4"]  # alone they would be the same


@pytest.mark.parametrize(
    "desktop, is_terminal, opens",
    [("DISPLAY", True, True), ("WAYLAND_DISPLAY", True, True), ("DISPLAY", False, False),
     ("HOME", True, False)],
)  # fmt: skip
def test_a_browser_opens_where_a_person_sits_at_a_desktop(
    monkeypatch: pytest.MonkeyPatch, desktop: str, is_terminal: bool, opens: bool
) -> None:
    opened: list[str] = []
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(desktop, "wayland-0")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setattr(webbrowser, "open", opened.append)
    open_page(Path("/tmp/a page.html"))
    assert opened == ["file:///tmp/a%20page.html"] * opens
