"""Recipes by name: what a word of a command means, and the facts at the top of every recipe."""

import re
import shutil
from pathlib import Path

import pytest

from hpm_video.bench.study.cells import Study
from hpm_video.cli.main import main
from hpm_video.config import FinetuneConfig, PretrainConfig, StudyConfig, recipe
from hpm_video.config.recipe import COMMANDS, FOLDER, find_recipe, for_a_gpu, list_recipes
from hpm_video.config.settings import load_config
from hpm_video.slurm.command import read_command
from hpm_video.slurm.snapshot import Snapshot

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*/*.yaml"))


def test_a_clone_reads_its_own_recipes() -> None:
    assert FOLDER == CONFIGS
    assert sorted(one.file for one in list_recipes()) == FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_recipe_opens_with_its_facts(file: Path) -> None:
    (one,) = [one for one in list_recipes() if one.file == file]
    for fact in (one.hardware, one.hours, one.expected):
        assert fact and len(re.split(r"\.(?= |$)", fact)[0]) <= 180, fact
    # What a reader sees, line by line
    text = file.read_text()
    for name in ("Hardware", "Hours", "Expected"):
        assert len(re.findall(rf"^# {name}: ", text, re.MULTILINE)) == 1
    command = f"hpm-video {COMMANDS[one.kind]}", f"-m hpm_video {COMMANDS[one.kind]}"
    submit = f"hpm-video submit {COMMANDS[one.kind]}"
    assert any(words in one.command for words in (*command, submit)), one.command
    assert one.kind == "demo" or f" {one.name} " in one.command
    assert "  " not in one.command and "\\" not in one.command


def test_recipes_for_a_gpu_are_known_with_the_one_for_a_cpu(tmp_path: Path) -> None:
    for kind in ("pretrain", "finetune"):
        for name in ("own_videos_cpu", "toy", "short_clips_tiny"):
            assert for_a_gpu(kind, name) is None
        for name in ("own_videos", "own_videos_base"):
            said = for_a_gpu(kind, name)
            assert said is not None and f"hpm-video {kind} own_videos_cpu" in said
        assert "_cpu" not in (for_a_gpu(kind, "ssv2_base") or "_cpu")
    (tmp_path / "mine.yaml").write_text("run: {}\n")
    assert for_a_gpu("pretrain", str(tmp_path / "mine.yaml")) is None


def test_facts_end_where_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "mine.yaml").write_text(
        "# A recipe; Hours: none here.\n#\n#   hpm-video pretrain mine \\\n#       a.b=c\n#\n"
        "# Hardware: one GPU. Or\n# two: fine.\n# Hours: 3.\n# Expected: .5 top-1; with\n"
        "# mining: more.\n#\n# Other: words.\nrun: {}  # Expected: no\n"
    )
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    (one,) = list_recipes()
    assert (one.kind, one.name) == ("pretrain", "mine")
    assert one.command == "hpm-video pretrain mine a.b=c"
    assert (one.hardware, one.hours) == ("one GPU. Or two: fine.", "3.")
    assert one.expected == ".5 top-1; with mining: more."


def test_a_name_is_looked_up_in_the_folder_of_its_command() -> None:
    for kind, schema in (("pretrain", PretrainConfig), ("finetune", FinetuneConfig)):
        found = find_recipe(kind, "ssv2_base")
        assert found == str(CONFIGS / kind / "ssv2_base.yaml")
        assert isinstance(load_config(schema, found), schema)
    assert find_recipe("ablation", "study_toy") == str(CONFIGS / "ablation" / "study_toy.yaml")
    found = find_recipe("pretrain", "variants:literal")
    assert load_config(PretrainConfig, found).model.predictor_depth == 4


def test_a_file_beats_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ssv2_base").mkdir()  # a folder is no recipe
    assert find_recipe("pretrain", "ssv2_base") == str(CONFIGS / "pretrain" / "ssv2_base.yaml")
    (tmp_path / "ssv2_small").write_text("optim: {epochs: 41}\n")
    assert find_recipe("pretrain", "ssv2_small") == "ssv2_small"
    file = str(CONFIGS / "pretrain" / "ssv2_base.yaml")
    assert find_recipe("pretrain", file) == file
    listing = str(CONFIGS / "ablation" / "variants.yaml:literal")
    assert find_recipe("pretrain", listing) == listing
    old = str(CONFIGS / "ablation" / "literal.yaml")  # as each variant once was
    assert find_recipe("pretrain", old) == old


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain", "ssv2_bsae"], "did you mean ssv2_base, "),
        (["pretrain", "configs/pretrain/ssv2_base.yaml"], "did you mean ssv2_base, "),
        (["finetune", "hmdb51_bas"], "did you mean hmdb51_base, "),
        (["pretrain", "hmdb51_base"], "not of pretrain: run hpm-video finetune hmdb51_base"),
        (["submit", "pretrain", "ssv2_bsae"], "did you mean ssv2_base, "),
        (["bench", "ablation", "study_tyo", "-o", "out"], "did you mean study_toy, "),
        (["bench", "plan", "ssv2_bsae", "--videos", "9"], "did you mean ssv2_base, "),
        (["pretrain", "zzz"], "`hpm-video recipes` lists all recipes"),
        (["pretrain", "variants:litteral"], "variants.yaml:literal?"),
        (["recipes", "ssv2_base"], "is ambiguous: choose pretrain/ssv2_base or finetune/ssv2_base"),
        (["recipes", "study_tyo"], "did you mean study_toy, "),
    ],
)
def test_an_unknown_name_is_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pretrain W/finetune.yaml", "mixing), not of pretrain: run hpm-video finetune W/f"),
        ("finetune W/pretrain.yaml", "…), not of finetune: run hpm-video pretrain W/pretrain.yaml"),
        ("pretrain W/probe.yaml", "run hpm-video probe CHECKPOINT --recipe W/probe.yaml"),
        ("pretrain W/study.yaml", "run hpm-video bench ablation W/study.yaml -o outputs/study"),
        ("bench ablation W/pretrain.yaml -o x", "run hpm-video pretrain W/pretrain.yaml"),
        ("probe W --recipe W/finetune.yaml", "run hpm-video finetune W/finetune.yaml"),
        ("bench plan W/finetune.yaml", "not of pretrain: run hpm-video finetune W/finetune.yaml"),
        ("submit pretrain W/finetune.yaml", "run hpm-video finetune W/finetune.yaml"),
        ("pretrain W", "config (W) is a folder: run hpm-video pretrain W/pretrain.yaml"),
        ("pretrain pretrain.yaml", "did you mean W/pretrain.yaml? "),
    ],
)
def test_a_file_for_another_command_is_one_line_with_that_command(
    words: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, name, new in (
        ("pretrain", "own_videos_cpu", "pretrain"),
        ("finetune", "own_videos_cpu", "finetune"),
        ("probe", "ssv2_frozen", "probe"),
        ("ablation", "study_toy", "study"),
    ):
        text = (CONFIGS / kind / f"{name}.yaml").read_text()
        (tmp_path / "W").mkdir(exist_ok=True)
        (tmp_path / "W" / f"{new}.yaml").write_text(text)
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_mistyped_name_or_one_that_commands_share_is_no_sign_of_another_command(
    tmp_path: Path,
) -> None:
    for name, text in (("typo", "masing: {}\n"), ("shared", "optim: {epochs: 4}\n")):
        (file := tmp_path / name).write_text(text)
        for kind in ("pretrain", "finetune"):
            assert find_recipe(kind, str(file)) == str(file)


def test_a_setting_of_another_command_is_not_replaced_by_a_similar_one() -> None:
    with pytest.raises(ValueError, match="mixing is unknown: it belongs to hpm-video finetune; "):
        load_config(PretrainConfig, None, ["mixing.mixup=1"])


def test_the_list_of_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert said.index("hpm-video pretrain NAME") < said.index("hpm-video finetune NAME")
    sections = dict(zip(COMMANDS, said.split("\n\n"), strict=False))
    for one in list_recipes():
        section = sections[one.kind]
        row = re.search(rf"^  {re.escape(one.name)}  +(\S.*)", section, re.MULTILINE)
        assert row is not None and row[1].startswith(one.hardware.split()[0]), one.name
    assert main(["recipes", "finetune/ssv2_base"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "finetune" / "ssv2_base.yaml").read_text()
    assert main(["recipes", "study_toy"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "ablation" / "study_toy.yaml").read_text()


def test_a_submitted_name_is_a_file_from_then_on(tmp_path: Path) -> None:
    words = ["pretrain", "--manifest", "a.csv", "-o", "out", "ssv2_base", "optim.epochs=2"]
    command = read_command(words)
    file = str(CONFIGS / "pretrain" / "ssv2_base.yaml")
    assert command.yaml == file
    assert command.words == (*words[:5], file, "optim.epochs=2")
    command = read_command(["bench", "ablation", "study_toy", "-o", "out"])
    assert command.words[2] == str(CONFIGS / "ablation" / "study_toy.yaml")
    # The code that is copied for a job has the recipes where an installed package has them
    snapshot = Snapshot(tmp_path)
    snapshot.write()
    copied = snapshot.code / "hpm_video" / "config" / "recipes"
    for path in FILES:
        assert (copied / path.relative_to(CONFIGS)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["study_toy", "study_gpu"])
def test_a_copied_study_finds_what_it_names(name: str, tmp_path: Path) -> None:
    """Beside itself or, where that is not, beside the original."""
    original = CONFIGS / "ablation" / f"{name}.yaml"
    copy = tmp_path / "mine.yaml"
    shutil.copy(original, copy)

    def study(file: Path) -> StudyConfig:
        config = load_config(StudyConfig, file)
        return Study(config, home=file.parent, folder=tmp_path / "out").config

    assert study(copy) == study(original)
    listing = (original.parent / "variants.yaml").read_text()
    mine = listing.replace("loss.prediction=none ", "loss.prediction=none optim.base_lr=1 ")
    (tmp_path / "variants.yaml").write_text(mine)
    assert study(copy) != study(original)
    assert "optim.base_lr=1" in study(copy).variants["videomae"].settings[0]
