import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpm_video.config import (
    AskConfig,
    EvaluateConfig,
    FeaturesConfig,
    FinetuneConfig,
    PretrainConfig,
    PretrainRunConfig,
    ProbeJobConfig,
    StudyConfig,
    values,
)
from hpm_video.config.schema import SettingFaults, describe_settings, settings_table
from hpm_video.config.settings import (
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    differing_keys,
    load_config,
)
from hpm_video.config.values import values_of
from hpm_video.models.sizes import SIZES
from hpm_video.slurm.options import SlurmConfig

SCHEMAS = [PretrainConfig, FinetuneConfig, EvaluateConfig, ProbeJobConfig, FeaturesConfig]
DESCRIBED = [*SCHEMAS, StudyConfig]  # which has groups with free names
CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMA_OF_FOLDER = {
    "pretrain": PretrainConfig,
    "ablation": PretrainConfig,
    "finetune": FinetuneConfig,
    "probe": ProbeJobConfig,
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_defaults_are_valid_and_all_described(schema: type) -> None:
    config = load_config(schema)
    assert config == schema()

    def leaves(values: dict, prefix: str = "") -> set[str]:
        keys = set()
        for key, value in values.items():
            keys |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
        return keys

    settings = list(describe_settings(schema))
    assert {setting.key for setting in settings} == leaves(config_to_dict(config))
    # As one would type them, defaults are what they say they are.
    typed = [f"{s.key}={s.default}" for s in settings]
    assert load_config(schema, None, typed) == config


@pytest.mark.parametrize("schema", DESCRIBED)
def test_every_setting_has_a_meaning(schema: type) -> None:
    for setting in describe_settings(schema):
        assert len(setting.meaning.split()) > 1, setting.key
        assert "noqa" not in setting.meaning


def test_meanings_and_choices_are_those_of_the_fields() -> None:
    settings = {setting.key: setting for setting in describe_settings(FinetuneConfig)}
    size, epochs = settings["model.size"], settings["optim.epochs"]
    assert size.choices == ("tiny", "small", "base", "large", "huge", "huge_v2", "giant")
    assert (epochs.default, epochs.choices) == ("50", ())
    assert epochs.meaning == "passes over the videos"  # of the class it inherits from
    assert settings["optim.layer_decay"].meaning.startswith("lr factor from each layer")
    assert settings["optim.betas"].default == "[0.9, 0.999]"
    assert settings["data.flip"].default == "false"


def test_sizes_and_defaults_are_among_the_declared_values() -> None:
    assert tuple(SIZES) == values_of(values.Size)
    for schema in (*DESCRIBED, SlurmConfig):
        for setting in describe_settings(schema):
            assert not setting.choices or setting.default in setting.choices, setting.key
            assert setting.meaning, setting.key


def test_a_list_is_a_new_one_in_every_config() -> None:
    assert PretrainConfig().data.manifest is not PretrainConfig().data.manifest


@pytest.mark.parametrize("schema", DESCRIBED)
@pytest.mark.parametrize("columns", [80, 100])
def test_the_table_of_settings_fits_its_columns(schema: type, columns: int) -> None:
    table = settings_table(schema, columns=columns)
    assert max(map(len, table.splitlines())) <= columns
    text = " ".join(table.split())
    for setting in describe_settings(schema):
        choices = f"{' | '.join(setting.choices)}; " if setting.choices else ""
        values = f"({choices}default {setting.default})"
        assert f"{setting.key} {setting.meaning} {values}" in text


def test_defaults_below_yaml_below_command_line(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(
        "# a comment\noptim:\n  epochs: 100\n  base_lr: 2e-4\ndata: {manifest: [a.csv, b.csv]}\n"
    )
    config = load_config(PretrainConfig, path, ["optim.epochs=200", "run.seed=7", "run.seed=8"])
    assert config.optim.epochs == 200
    assert config.optim.base_lr == 2e-4
    assert config.optim.warmup_epochs == PretrainConfig().optim.warmup_epochs
    assert config.run.seed == 8
    assert config.data.manifest == ["a.csv", "b.csv"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("outputs/run #2", "outputs/run #2"),
        ("2026_11_22", "2026_11_22"),
        ("007", "007"),
        ("1e3", "1e3"),
        ("12:30:00", "12:30:00"),
        ("on", "on"),
        ("a: b", "a: b"),
        ("'quoted'", "quoted"),
        ("null", None),
        ("", None),
    ],
)
def test_a_text_is_what_was_typed(typed: str, expected: str | None) -> None:
    """Not what YAML makes of it: two folders would be one."""
    assert load_config(PretrainConfig, None, [f"run.output_dir={typed}"]).run.output_dir == expected


def test_a_text_of_a_group_with_a_free_name_is_what_was_typed() -> None:
    config = load_config(StudyConfig, None, ["sets.one.train=a #1.csv", "sets.one.val=[b, c]"])
    assert (config.sets["one"].train, config.sets["one"].val) == (["a #1.csv"], ["b", "c"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.manifest=one.csv", ["one.csv"]),
        ("data.manifest=[one.csv,two.csv]", ["one.csv", "two.csv"]),
        ("data.manifest=[one.csv, two.csv]", ["one.csv", "two.csv"]),
        ("data.manifest=/a b/x=y, z#1: {2}.csv", ["/a b/x=y, z#1: {2}.csv"]),
        ("data.manifest=", []),
        ("data.manifest=[]", []),
    ],
)
def test_a_list_of_manifests(override: str, expected: list[str]) -> None:
    assert load_config(PretrainConfig, None, [override]).data.manifest == expected


def test_a_pattern_that_the_shell_has_replaced_is_refused() -> None:
    """Else the last tar alone would count."""
    names = [f"data.manifest=t-{number}.tar" for number in range(3)]
    with pytest.raises(ValueError, match=r"data.manifest \(t-0.tar, t-1.tar\) must be given once"):
        load_config(PretrainConfig, None, names)
    later = load_config(PretrainConfig, None, ["data.manifest=a.csv", names[0], names[0]])
    assert later.data.manifest == ["t-0.tar"]
    pattern = load_config(PretrainConfig, None, ["data.manifest=t-{0..2}.tar"])
    assert pattern.data.manifest == ["t-{0..2}.tar"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("one.csv", ["one.csv"]),
        ("a b/x=y.csv", ["a b/x=y.csv"]),
        ("[one.csv, two.csv]", ["one.csv", "two.csv"]),
        ("[]", []),
        ("''", []),
        ("'null'", ["null"]),
    ],
)
def test_a_yaml_may_name_one_manifest(tmp_path: Path, value: str, expected: list[str]) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(f"data: {{manifest: {value}, val_manifest: {value}}}\n")
    config = load_config(FinetuneConfig, path)
    assert config.data.manifest == config.data.val_manifest == expected


@pytest.mark.parametrize("value", ["null", "[null]"])
def test_no_manifest_is_an_empty_list(tmp_path: Path, value: str) -> None:
    message = re.escape(f"data.manifest ({value}) must be a list: [a, b], or a single text")
    with pytest.raises(ValueError, match=message):
        load_config(PretrainConfig, None, [f"data.manifest={value}"])
    (tmp_path / "some.yaml").write_text(f"data: {{manifest: {value}}}\n")
    with pytest.raises(ValueError, match=message):
        load_config(PretrainConfig, tmp_path / "some.yaml")


def test_values_of_every_kind() -> None:
    config = load_config(
        FinetuneConfig,
        None,
        [
            "data.flip=true",
            "optim.betas=[0.8,0.9]",
            "optim.clip_grad=1",
            "model.width=null",
            "run.precision=float32",
            "optim.base_lr=1e-3",
            "data.val_manifest=v.csv",
        ],
    )
    assert config.data.flip is True
    assert tuple(config.optim.betas) == (0.8, 0.9)
    assert config.optim.clip_grad == 1.0
    assert config.model.width is None
    assert config.optim.base_lr == 0.001
    assert config.data.val_manifest == ["v.csv"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("masking.mask_ration=0.9", ["mask_ration", "mask_ratio"]),
        ("model.sise=small", ["sise", "size"]),
        ("optin.epochs=3", ["optin", "optim"]),
        ("model.size=smal", ["smal", "small"]),
        ("optim.epochs=many", ["optim.epochs", "many"]),
        ("optim.epochs=1.5", ["optim.epochs", "1.5"]),
        ("data.flip=perhaps", ["data.flip", "perhaps"]),
        ("optim.epochs", ["optim.epochs", "group.key=value"]),
        ("masking.mask_ratio=1.2", ["masking.mask_ratio (1.2)", "(0, 1)"]),
        ("masking.hard_ratio_end=-1", ["masking.hard_ratio_end (-1", "[0, 1]"]),
        ("masking.hard_ratio_start=1.5", ["masking.hard_ratio_start (1.5)", "[0, 1]"]),
        ("masking.tube_length=0", ["masking.tube_length (0)", "at least 1"]),
        ("masking.decoder_mask_ratio=1", ["masking.decoder_mask_ratio (1", "[0, 1)"]),
        ("masking.decoder_mask_ratio=.nan", ["masking.decoder_mask_ratio (nan)", "[0, 1)"]),
        ("data.windows=2", ["data.windows (2)", "divide data.repeats (1)"]),
        ("model.decoder_mlp_ratio=0", ["model.decoder_mlp_ratio (0.0)", "[0.25, 64]"]),
        ("model.decoder_mlp_ratio=.nan", ["model.decoder_mlp_ratio (nan)", "[0.25, 64]"]),
        ("masking.decoder_mask=cells", ["masking.decoder_mask", "cells", "running_cell"]),
        ("teacher.token_ratio=0", ["teacher.token_ratio (0", "(0, 1]"]),
        ("teacher.token_ratio=1.1", ["teacher.token_ratio (1.1)", "(0, 1]"]),
        ("teacher.draws=0", ["teacher.draws (0)", "at least 1"]),
        ("teacher.view=some", ["teacher.view", "some", "spread"]),
        ("optim.epochs=0", ["optim.epochs (0)", "at least 1"]),
        ("optim.warmup_epochs=800", ["optim.warmup_epochs (800)", "optim.epochs (800)"]),
        ("loss.prediction=none", ["loss.prediction (none)", "hard_ratio_end"]),
        ("model.predictor_input=all", ["model.predictor_input", "all", "pixels", "both"]),
        ("masking.source=flow", ["masking.source", "flow", "motion, codec, measured"]),
        ("masking.pattern=cubes", ["masking.pattern", "cubes", "windows, tokens, blocks"]),
        ("masking.pattern=windows", ["tube_length (null) must be at least 2", "is windows"]),
        ("masking.ramp=epochs", ["masking.ramp", "epochs", "time, competence"]),
        ("masking.competence_low=0.8", ["competence_low (0.8)", "competence_high (0.74)"]),
        ("masking.competence_high=1.1", ["competence_low (0.52)", "competence_high (1.1)"]),
        ("masking.competence_low=.nan", ["masking.competence_low (nan)", "[0, 1]"]),
        ("loss.pixel_prediction_weight=-1", ["loss.pixel_prediction_weight (-1", "at least 0"]),
        ("run.collapse_records=-1", ["run.collapse_records (-1)", "at least 0"]),
        ("run.log_every=0", ["run.log_every (0)", "at least 1"]),
        ("run.seed=-1", ["run.seed (-1)", "must be in"]),
        ("run.seed=99999999999999999999", ["run.seed (99999999999999999999)", "must be in"]),
        ("optim.betas=[1.5,0.9]", ["optim.betas ([1.5, 0.9])", "[0, 1)"]),
        ("optim.min_lr=-1", ["optim.min_lr (-1.0)", "at least 0"]),
        ("optim.min_lr=1", ["optim.min_lr (1.0)", "optim.base_lr (0.00015)"]),
        ("optim.warmup_lr=.nan", ["optim.warmup_lr (nan)", "at least 0"]),
        ("optim.clip_grad=.nan", ["optim.clip_grad (nan)", "above 0"]),
        ("optim.weight_decay=.inf", ["optim.weight_decay (inf)", "at least 0"]),
        ("model.drop_path=1", ["model.drop_path (1", "[0, 1)"]),
        ("optim.clip_grad=0", ["optim.clip_grad (0", "above 0"]),
        ("data.batch_size=0", ["data.batch_size (0)", "at least 1"]),
        ("run=5", ["run (5) must be a group"]),
        ("model=", ["model (null) must be a group"]),
        ("optim.betas=[0.9]", ["optim.betas ([0.9]) must be a list of 2 numbers: [a, b]"]),
        ("optim.betas=0.9", ["optim.betas (0.9) must be a list of 2 numbers"]),
        ("optim.betas=[0.9,x]", ["optim.betas ([0.9, x]) must be a list of 2 numbers"]),
        ("optim.betas=null", ["optim.betas (null) must be a list of 2 numbers"]),
        ("optim.epochs=x", ["optim.epochs (x) must be a whole number"]),
        ("optim.epochs=", ["optim.epochs (null) must be a whole number"]),
        ("optim.epochs={a: 1}", ["optim.epochs ({a: 1}) must be a whole number"]),
        ("model.width=x", ["model.width (x) must be a whole number, or null"]),
        ("optim.base_lr=1e", ["optim.base_lr (1e) must be a number"]),
        ("data.flip=maybe", ["data.flip (maybe) must be true or false"]),
        ("run.output_dir=[a]", ["run.output_dir ([a]) must be text, or null"]),
        ("run.device=gpu", ["run.device (gpu) must be one of auto, cpu, cuda"]),
        ("data.manifest[0]=x", ["data.manifest ({0: x}) must be a list"]),
        ("data.weights=2", ["data.weights (2) must be a list of numbers: [1, 2]"]),
        ("data.manifest=[a", ["setting (data.manifest=[a) cannot be read"]),
        ("epochs=3", ["setting epochs is unknown: did you mean optim.epochs?"]),
        ("data.mask_ratio=0.8", ["did you mean masking.mask_ratio?"]),
        ("optin.epochs=3", ["setting optin is unknown: did you mean optim?"]),
        ("zzz=1", ["setting zzz is unknown"]),
        ("=3", ["setting (=3) must have the form group.key=value"]),
        ("optim..epochs=3", ["setting (optim..epochs=3) must have the form group.key=value"]),
        ("run.output_dir=${nothing}", ["nothing"]),
    ],
)
def test_mistakes_are_one_line_that_names_them(override: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        load_config(PretrainConfig, None, [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    # Nothing of how settings are read: class names, the library's words for types.
    assert not re.search(r"Config\b|Optional|VALUE|Merge|subclass|type hint|'(str|int)'", message)


def test_units_are_not_ranked_by_parts() -> None:
    settings = ["loss.ranking_level=unit", "masking.decoder_mask_ratio=0.5"]
    message = r"loss.ranking_level \(unit\) must be token while masking.decoder_mask_ratio \(0.5\)"
    with pytest.raises(ValueError, match=message) as caught:
        load_config(PretrainConfig, None, settings)
    assert "\n" not in str(caught.value)
    load_config(PretrainConfig, None, settings[1:])
    load_config(PretrainConfig, None, settings[:1])
    for kind in ("pixels", "both"):
        pixels = [settings[0], f"model.predictor_input={kind}"]
        message = rf"loss.ranking_level \(unit\).*{kind}.*token_ratio \(0.1\)"
        with pytest.raises(ValueError, match=message):
            load_config(PretrainConfig, None, pixels)
        load_config(PretrainConfig, None, [*pixels, "teacher.token_ratio=1"])


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("auto", (None, 1, 4), ()),
        ("tubes", (None,), (1, 4)),
        ("blocks", (None,), (1, 4)),
        ("tokens", (None, 1), (4,)),
        ("windows", (2, 4), (None, 1)),
    ],
)
def test_the_pattern_agrees_with_the_length_of_tubes(
    pattern: str, fitting: tuple[int | None, ...], others: tuple[int | None, ...]
) -> None:
    for length in (*fitting, *others):
        given = length or "null"
        settings = [f"masking.pattern={pattern}", f"masking.tube_length={given}"]
        if length in fitting:
            masking = load_config(PretrainConfig, None, settings).masking
            assert masking.unit_length(8) == (1 if pattern == "tokens" else length or 8)
            continue
        with pytest.raises(ValueError, match=rf"\({given}\) must be .* {pattern}") as caught:
            load_config(PretrainConfig, None, settings)
        assert "\n" not in str(caught.value) and "masking.pattern=auto" in str(caught.value)


@pytest.mark.parametrize("source", ["none", "motion", "codec", "measured"])
def test_masks_that_need_no_prediction_work_without(source: str) -> None:
    without = ["loss.prediction=none", f"masking.source={source}"]
    assert not load_config(PretrainConfig, None, without).masking.needs_teacher
    waits = [*without, "masking.ramp=competence"]
    if source == "none":  # nothing waits
        load_config(PretrainConfig, None, waits)
        return
    with pytest.raises(ValueError, match=r"loss.prediction \(none\).*competence") as caught:
        load_config(PretrainConfig, None, waits)
    assert "\n" not in str(caught.value)
    load_config(PretrainConfig, None, waits[1:])


def test_what_masks_follow_has_to_learn() -> None:
    both = ["model.predictor_input=both", "loss.pixel_prediction_weight=0"]
    waits = ["masking.ramp=competence", "loss.prediction_weight=0"]
    for settings, other in ((both, "masking.source=motion"), (waits, "masking.ramp=time")):
        name = settings[1].removesuffix("=0")
        with pytest.raises(ValueError, match=rf"{name} \(0\) must be above 0") as caught:
            load_config(PretrainConfig, None, settings)
        assert "\n" not in str(caught.value)
        load_config(PretrainConfig, None, [*settings, other])


def test_a_teacher_that_sees_all_looks_once() -> None:
    with pytest.raises(ValueError, match=r"teacher.draws \(2\) must be 1 while"):
        load_config(PretrainConfig, None, ["teacher.draws=2", "teacher.token_ratio=1"])
    load_config(PretrainConfig, None, ["teacher.draws=2", "teacher.token_ratio=0.9"])


@pytest.mark.parametrize(
    "text",
    [
        "masking: {mask_ration: 0.9}",
        "masking: [0.9]",
        "- masking",
        "just words",
        "masking: {mask_ratio: 0.9",
        "optim: {epochs: 3}\noptim: {epochs: 4}",
        "optim: {epochs: x}",
    ],
)
def test_mistakes_in_a_yaml_name_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"some\.yaml") as caught:
        load_config(PretrainConfig, path)
    assert "\n" not in str(caught.value)


def test_a_yaml_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes(b"\xff\xfe\x00\x9c optim")
    with pytest.raises(ValueError, match=r"some\.yaml"):
        load_config(PretrainConfig, path)


def test_a_missing_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config(PretrainConfig, tmp_path / "nowhere.yaml")


def test_an_empty_yaml_states_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# only a comment\n")
    assert load_config(PretrainConfig, path) == PretrainConfig()


@pytest.mark.parametrize("schema", SCHEMAS)
def test_dicts_and_yaml_give_the_config_back(schema: type) -> None:
    tricky = ["123", "1e5", "true", "null", "a: b", "~", "ü - {x}", "2020-01-01", "0x10", " s "]
    for text in tricky:
        config = load_config(schema)
        key = "root" if issubclass(schema, AskConfig) else "run.output_dir"
        values = config_to_dict(config)
        *groups, last = key.split(".")
        inner = values
        for group in groups:
            inner = inner[group]
        inner[last] = text
        config = config_from_dict(schema, values)
        assert config_to_dict(config) == values
        assert config_from_dict(schema, config_to_dict(config)) == config
        assert yaml.safe_load(config_to_yaml(config)) == values


@pytest.mark.parametrize("value", ["1e-6", "1e-05", "0.1", "1e10", "3", "1.5e-4"])
def test_numbers_survive_the_round_trip(tmp_path: Path, value: str) -> None:
    config = load_config(PretrainConfig, None, [f"optim.base_lr={value}", "optim.min_lr=0"])
    assert config.optim.base_lr == float(value)
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(config))
    assert load_config(PretrainConfig, path) == config
    assert config_to_dict(load_config(PretrainConfig, path)) == config_to_dict(config)


def test_differing_keys_are_dotted_and_see_both_sides() -> None:
    one = config_to_dict(load_config(PretrainConfig))
    other = config_to_dict(load_config(PretrainConfig, None, ["run.seed=3", "data.flip=true"]))
    assert differing_keys(one, one) == []
    assert differing_keys(one, other) == ["run.seed", "data.flip"]
    assert differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}, "d": None}) == ["a.c"]


@pytest.mark.parametrize(
    "key",
    ["optim.base_lr", "optim.weight_decay", "loss.prediction_weight", "masking.hard_ratio_end"],
)
def test_what_is_not_a_number_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        load_config(PretrainConfig, None, [f"{key}=.nan"])


@pytest.mark.parametrize(
    "path",
    sorted(CONFIGS.rglob("*.yaml")) or [pytest.param(None, marks=pytest.mark.skip("no configs"))],
    ids=lambda path: str(path and path.relative_to(CONFIGS)),
)
def test_every_yaml_of_the_project_loads(path: Path) -> None:
    group = path.relative_to(CONFIGS).parts[0]
    schema = SCHEMA_OF_FOLDER.get(group)
    if schema is None:  # other folders name the job in the file's name
        schema = next(s for job, s in SCHEMA_OF_FOLDER.items() if job in path.stem)
    if path.stem.startswith("study_"):  # many runs of both kinds
        schema = StudyConfig
    values = yaml.safe_load(path.read_text()) or {}
    if path.name == "variants.yaml":  # a list: tests/bench/test_ablation.py loads each of it
        values = values["base"]
    else:
        load_config(schema, path)
    section = values.pop("slurm", {})  # of no job: see tests/test_slurm_submit.py
    usual = asdict(SlurmConfig())
    assert not [key for key, value in section.items() if usual[key] == value]
    defaults = dict(_leaves(config_to_dict(schema())))
    # Entries of groups with free names have no defaults of their own here
    same = [key for key, value in _leaves(values) if key in defaults and defaults[key] == value]
    assert not same, "a YAML states only what differs from the defaults"


def _leaves(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    result: list[tuple[str, object]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            result += _leaves(value, f"{prefix}{key}.")
        else:
            result.append((prefix + key, value))
    return result


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (PretrainConfig, ["masking.mask_ratio=1.2", "run.seed=-1", "data.batch_size=0"]),
        (PretrainConfig, ["optim.epochs=10", "optim.warmup_epochs=20", "optim.min_lr=1"]),
        (PretrainConfig, ["optim.betas=[2, 3]", "run.loggers=[a]", "loss.target_layers=[1]"]),
        (PretrainConfig, ["run.device=cdua", "optim.epochs=many", "data.fps=5"]),
        (PretrainConfig, ["loss.target=frozen", "data.batch_size=auto", "run.probe_every=2"]),
        (PretrainConfig, ["loss.prediction=none", "masking.decoder_mask_ratio=2"]),
        (PretrainConfig, ["masking.pattern=windows", "data.repeats=4", "data.windows=3"]),
        (PretrainConfig, ["run.picture_every=-1", "run.history_checkpoints=many"]),
        (FinetuneConfig, ["data.batch_size=3", "data.crop_on=device", "evaluation.patience=2"]),
        (FinetuneConfig, ["model.name=x3d_s", "optim.layer_decay=.5", "mixing.mixup=-1"]),
    ],
)
def test_all_faults_come_at_once_with_values_that_would_do(
    schema: type[Any], words: list[str]
) -> None:
    """What the faults propose, in place of what was typed, is accepted."""
    with pytest.raises(SettingFaults) as raised:
        load_config(schema, None, words)
    faults = raised.value.faults
    assert len(faults) > 1
    typed = dict(word.split("=", 1) for word in words)
    for fault in faults:
        found = re.search(r"; try '?([a-z_]+\.[a-z_]+)=([^'=]+?)'?$", fault) or re.search(
            r"([a-z_]+\.[a-z_]+)=([^\s,:;)]+)", fault
        )
        assert found, fault
        typed[found[1]] = found[2]
    load_config(schema, None, [f"{key}={value}" for key, value in typed.items()])


def test_a_value_of_the_recipe_would_do(tmp_path: Path) -> None:
    """Before the default: it is what was there before the mistake."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("masking: {mask_ratio: 0.6}\n")
    with pytest.raises(SettingFaults, match=r"; try masking\.mask_ratio=0\.6$"):
        load_config(PretrainConfig, recipe, ["masking.mask_ratio=6"])


@pytest.mark.parametrize(
    ("schema", "epochs", "expected"),
    [
        (PretrainConfig, 800, 40),  # as published
        (PretrainConfig, 3200, 40),
        (PretrainConfig, 100, 5),
        (PretrainConfig, 5, 0),
        (FinetuneConfig, 50, 5),  # as published
        (FinetuneConfig, 100, 5),
        (FinetuneConfig, 8, 2),
        (FinetuneConfig, 1, 0),
    ],
)
def test_warm_up_follows_the_epochs(schema: type[Any], epochs: int, expected: int) -> None:
    assert load_config(schema, None, [f"optim.epochs={epochs}"]).optim.warmup == expected
    words = [f"optim.epochs={epochs + 9}", "optim.warmup_epochs=9"]
    assert load_config(schema, None, words).optim.warmup == 9


@pytest.mark.parametrize(("steps", "every"), [(6, 20), (300, 30), (9_000, 900), (90_000, 1000)])
def test_short_runs_have_pictures_too(steps: int, every: int) -> None:
    assert PretrainRunConfig().pictures_every(steps) == every
    assert PretrainRunConfig(picture_every=7).pictures_every(steps) == 7
