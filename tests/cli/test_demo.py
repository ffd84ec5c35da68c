"""`hpm-video demo`: what it runs, whatever lies in the current folder."""

from pathlib import Path

import pytest

from hpm_video.cli import demo as demo_module
from hpm_video.cli.demo import Scale, demo
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.train import pretrain as pretraining

ROOT = Path(__file__).parents[2]


def test_it_takes_its_own_recipes_and_the_device_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no file of the current folder that has the name of one."""
    monkeypatch.chdir(tmp_path)
    for name in ("pretrain", "finetune"):
        Path(name).touch()
    asked: list[PretrainConfig] = []

    def stop(config: PretrainConfig) -> bool:
        asked.append(config)
        return False

    monkeypatch.setattr(demo_module, "QUICK", Scale(4, 2, 2, 1))
    monkeypatch.setattr(pretraining, "pretrain", stop)
    assert demo("dq", quick=True, device="cpu") is None
    (config,) = asked
    recipe = load_config(PretrainConfig, ROOT / "configs" / "demo" / "pretrain.yaml")
    assert (config.model, config.optim, config.masking) == (
        recipe.model,
        recipe.optim,
        recipe.masking,
    )
    assert config.run.device == "cpu"
