"""Settings out of checkpoints, run folders and YAML of strangers: data, in bounds, one line."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from hpm_video.cli.main import main
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import (
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    load_config,
    read_group,
    read_stored,
)

_BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(10 * [f'*{before}'])}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
_YAML = {
    "deep": "a: " + "[" * 3000 + "]" * 3000,
    "deep groups": "".join(f"{' ' * n}a:\n" for n in range(300)),
    "digits": f"run:\n  seed: {'1' * 5000}\n",
    "hexadecimal": f"run:\n  seed: 0x{'f' * 50_000}\n",
    "aliases": _BOMB,
    "itself": "a: &a [*a]\n",
    # Where libyaml stops and the parser in Python goes on
    "a long key": f"{'k' * 2000}: 1\na: " + "[" * 3000 + "]" * 3000,
}


def _stored(**changes: Any) -> dict[str, Any]:
    stored = config_to_dict(PretrainConfig())
    for name, value in changes.items():
        group, _, key = name.partition("__")
        stored[group] = {**stored[group], key: value} if key else value
    return stored


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", r"\${oc.env:SECRET}", "${run.seed}", "${a"])
def test_no_interpolation_of_stored_settings_is_resolved(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SECRET", "not-to-be-shown")
    config = config_from_dict(PretrainConfig, _stored(run__output_dir=text, data__manifest=[text]))
    assert config.run.output_dir == text and list(config.data.manifest) == [text]
    assert "not-to-be-shown" not in (shown := config_to_yaml(config))
    assert text in shown and config_to_dict(config)["run"]["output_dir"] == text


def test_any_text_is_kept_and_can_be_stored_again() -> None:
    random.seed(0)
    for _ in range(30):
        text = "".join(random.choices("\\${}a'\" :,[]#\u00e4", k=random.randint(1, 9)))
        config = config_from_dict(PretrainConfig, _stored(run__output_dir=text))
        assert config.run.output_dir == text
        assert config_to_dict(config)["run"]["output_dir"] == text


def test_interpolations_of_ones_own_yaml_and_words_are_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "here")
    (tmp_path / "a.yaml").write_text("run:\n  output_dir: ${oc.env:WHERE}\n")
    assert load_config(PretrainConfig, tmp_path / "a.yaml").run.output_dir == "here"
    words = ["run.output_dir=${oc.env:WHERE}/x"]
    assert load_config(PretrainConfig, None, words).run.output_dir == "here/x"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run__seed": "${oc.env:SECRET}"}, "run.seed .* must be a whole number"),
        ({"run__seed": 10**5000}, "64 bits"),
        ({"run__seed": [[[]]]}, "run.seed"),
        ({"run__seed": object()}, "text and numbers as values, not object"),
        ({"run": 3}, "run .* must be a group"),
        ({"optim__betas": ["${a}", 1]}, "optim.betas"),
        ({"run__device": "${oc.env:SECRET}"}, "run.device"),
    ],
)
def test_stored_settings_of_wrong_types(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        config_from_dict(PretrainConfig, _stored(**changes))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_stored_settings_that_are_deep_or_stand_for_many() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    many: Any = ["x"] * 10
    for _ in range(12):
        many = [many] * 10
    for value in (deep, many):
        with pytest.raises(
            ValueError, match="nested at most 20 levels deep, with at most 100000 values"
        ):
            config_from_dict(PretrainConfig, _stored(data__manifest=value))


@pytest.mark.parametrize("kind", _YAML)
def test_yaml_that_is_too_much_is_one_line(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(_YAML[kind])
    assert main(["pretrain", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a.yaml" in said and len(said) < 400
    with pytest.raises(ValueError, match=r"a\.yaml does not hold the settings of a run") as caught:
        read_stored(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"a\.yaml"):
        read_group(file, "slurm")


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 3000, f"0x{'f' * 50_000}"])
def test_words_that_are_too_much_are_one_line(
    tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("{}\n")
    assert main(["pretrain", str(tmp_path / "a.yaml"), f"run.seed={value}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "run.seed" in said and len(said) < 400


@pytest.mark.parametrize("device", [False, True])
def test_a_pipe_or_a_device_is_no_settings(
    tmp_path: Path, device: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    if device:
        file.symlink_to("/dev/zero")
    else:
        os.mkfifo(file)
    assert main(["pretrain", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ValueError, match="must be a regular file"):
        read_stored(file)
