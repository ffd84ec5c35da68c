"""The same thing has the same option everywhere, and the spellings of before still work."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpm_video.cli.main import JOBS, command_of, main
from hpm_video.cli.options import parse
from hpm_video.slurm.command import make_plan, read_command


def _parser(job: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=job)
    command_of(job).add_arguments(parser)
    return parser


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _parsers(inner)


def _parse(*words: str) -> argparse.Namespace:
    return parse(_parser(words[0]), words[1:])


@pytest.mark.parametrize("job", [job for job in JOBS if job != "bench"])
def test_the_same_thing_has_the_same_option(job: str) -> None:
    for parser in _parsers(_parser(job)):
        known = {option: action for action in parser._actions for option in action.option_strings}
        outputs = {known[name] for name in ("--output", "--output-dir") if name in known}
        assert outputs == ({known["-o"]} if "-o" in known else set()), parser.prog
        for old, new in (("--workers", "--num-workers"), ("--list", "--manifest")):
            if old in known:
                assert known[old] is known[new], parser.prog
        takes_videos = parser.prog.split()[-1] in (
            "pretrain", "finetune", "evaluate", "predict", "features", "visualize", "list", "check",
            "transcode",
        )  # fmt: skip
        assert ("--manifest" in known) == takes_videos, parser.prog
        runs_a_model = job in (
            "pretrain", "finetune", "evaluate", "predict", "probe", "features", "visualize",
            "demo", "start",
        )  # fmt: skip
        assert ("--device" in known) == runs_a_model, parser.prog


@pytest.mark.parametrize(
    ("words", "videos"),
    [
        (["a.mp4", "device=cpu"], ["a.mp4"]),
        (["device=cpu", "a.mp4", "b.mp4"], ["a.mp4", "b.mp4"]),
        (["device=cpu", "--manifest", "l.csv"], []),
        (["--manifest", "l.csv", "device=cpu"], []),
        # None of these is there, and none has the name of a setting before its sign
        (["a.mp4#t=1,2", "device=cpu", "a.mp4#t=x"], ["a.mp4#t=1,2", "a.mp4#t=x"]),
        (
            ["b.tar/k=1.mp4", "b.tar/a.mp4#t=1,2", "device=cpu"],
            ["b.tar/k=1.mp4", "b.tar/a.mp4#t=1,2"],
        ),
        (["https://a/b.mp4?c=1", "device=cpu"], ["https://a/b.mp4?c=1"]),
    ],
)
def test_videos_and_settings_stand_in_any_order(words: list[str], videos: list[str]) -> None:
    given = _parse("predict", "run", *words)
    assert (given.videos, given.settings) == (videos, ["device=cpu"])
    assert given.manifest == ([] if videos else ["l.csv"])
    plan_words = ["predict", "run", *words]
    plan = make_plan(read_command(plan_words), wait_for_inputs=False)
    assert plan.tasks[0].arguments == tuple(plan_words)


@pytest.mark.parametrize("command", ["check", "transcode"])
@pytest.mark.parametrize("options", [[], ["--workers", "3", "--timeout", "9", "--root", "r"]])
def test_the_list_of_a_command_may_be_named_both_ways(command: str, options: list[str]) -> None:
    words = ["data", command, *(["-o", "out"] if command == "transcode" else []), *options]
    given = _parse(*words, "m.csv")
    assert given == _parse(*words, "--manifest", "m.csv")
    assert given.manifest == "m.csv"
    if options:
        assert (given.num_workers, given.decode_timeout_s, given.root) == (3, 9, "r")
    for wrong in ([], ["m.csv", "--manifest", "m.csv"]):
        with pytest.raises(SystemExit):
            _parse(*words, *wrong)


def test_options_are_settings_that_typed_settings_override() -> None:
    given = _parse(
        "pretrain", "--manifest", "a b.csv", "c,d.csv", "optim.epochs=2", "--device", "cpu", "-o",
        "out", "--seed", "3", "--num-workers", "0", "some.yaml", "run.seed=4", "--root", "r",
        "run.log_every=1",
    )  # fmt: skip
    assert given.config == "some.yaml"
    assert set(given.settings[:-2]) == {
        'data.manifest=["a b.csv", "c,d.csv"]', "optim.epochs=2", "run.device=cpu",
        "run.output_dir=out", "run.seed=3", "data.num_workers=0", "data.root=r",
    }  # fmt: skip
    assert given.settings[-2:] == ["run.seed=4", "run.log_every=1"]
    assert vars(given).keys() == {"config", "settings"}
    assert _parse("finetune", "some.yaml", "--manifest", "[a].csv").settings == [
        'data.manifest=["[a].csv"]'
    ]


def test_settings_may_follow_options_with_several_values(tmp_path: Path) -> None:
    words = (
        "probe",
        "run",
        "--train",
        "a",
        "device=cpu",
        "--val",
        "b",
        "c",
        "--kind",
        "knn",
        "x=1",
    )
    given = _parse(*words)
    assert (given.train, given.val, given.kind) == (["a"], ["b", "c"], ["knn"])
    assert given.settings == ["device=cpu", "x=1"]
    with pytest.raises(ValueError, match="--manifest must have a value: only settings follow it"):
        _parse("evaluate", "run", "--manifest", "device=cpu")
    file = tmp_path / "a=b.csv"
    file.touch()
    assert _parse("evaluate", "run", "--manifest", str(file)).manifest == [str(file)]


def test_a_submitted_command_has_what_its_options_say(tmp_path: Path) -> None:
    command = read_command(["pretrain", "ssv2_base", "-o", "out", "run.seed=2", "--device", "cpu"])
    assert set(command.namespace.settings) == {"run.output_dir=out", "run.device=cpu", "run.seed=2"}
    (tmp_path / "m.csv").touch()
    for words in (["--num-workers", "5"], ["--workers=5"]):
        plan = make_plan(read_command(["data", "check", str(tmp_path / "m.csv"), *words]))
        assert plan.loader_workers == 5


@pytest.mark.parametrize(
    "words",
    [
        ["--num-workers", "4", "--manifest", "a.csv", "data.num_workers=0"],
        ["data.num_workers=0", "--manifest", "a.csv", "--num-workers", "4"],
        ["--manifest", "a.csv", "data.num_workers=3", "--num-workers", "4", "data.num_workers=0"],
    ],
)
def test_a_typed_setting_wins_wherever_it_stands(words: list[str]) -> None:
    settings = read_command(["pretrain", "ssv2_base", *words]).namespace.settings
    assert "data.manifest=a.csv" in settings
    assert [word for word in settings if word.startswith("data.num_workers=")][-1].endswith("=0")


def test_a_sweep_overrides_the_options_it_is_swept_over() -> None:
    words = ["pretrain", "ssv2_base", "--manifest", "a.csv", "--num-workers", "4"]
    swept = [*words, "data.manifest=b.csv", "data.num_workers=1"]
    settings = read_command(swept).namespace.settings
    assert settings[-2:] == ["data.manifest=b.csv", "data.num_workers=1"]


def test_a_console_script_of_before_still_starts() -> None:
    from hpm_video.cli.main import entry

    with pytest.warns(DeprecationWarning, match=r"hpm_video\.cli\.entry has moved to"):
        from hpm_video.cli import entry as old
    assert old is entry


@pytest.mark.parametrize("words", [["start", "-clips"], ["data", "list", "--folder", "--clips"]])
def test_a_folder_whose_name_is_read_as_an_option(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / words[-1]).mkdir()
    with pytest.raises(SystemExit):
        main(words)
    assert f"write ./{words[-1]}" in capsys.readouterr().err
