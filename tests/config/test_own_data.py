"""Settings for own videos: sensible for any number of them, with and without a GPU."""

import math
from itertools import pairwise

import pytest
import yaml
from omegaconf import OmegaConf

from hpm_video.config.own_data import (
    Choices,
    Computer,
    Videos,
    choose_finetuning,
    choose_pretraining,
    fit_hours,
    hours_in_words,
)
from hpm_video.train.batch_size import MOST_ON_CPU
from hpm_video.train.step_videos import step_videos

CPU = Computer("2 cores", cores=2, memory_gb=24)
GPU = Computer("a GPU", cores=16, memory_gb=128, gpu_gb=24)
NUMBERS = (2, 5, 30, 300, 3000, 30_000)


def _videos(number: int, **about: object) -> Videos:
    usual = {"num_classes": 8, "frames": 300, "seconds": (5, 10, 15), "fps": 25, "short_side": 240}
    return Videos(number=number, **{**usual, **about})  # type: ignore[arg-type]


def _chosen(videos: Videos, computer: Computer) -> list[Choices]:
    pretraining = choose_pretraining(videos, computer)
    return [pretraining, choose_finetuning(videos, computer, pretraining)]


@pytest.mark.parametrize("computer", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("number", NUMBERS)
def test_any_number_of_videos_makes_steps(number: int, computer: Computer) -> None:
    for chosen in _chosen(_videos(number), computer):
        config = chosen.config()
        total, _ = step_videos(config.data, config.optim, num_videos=number, num_processes=1)
        assert total == config.optim.total_batch <= number
        # Four steps an epoch, so that no large part of the videos is left out of each
        assert number < 8 or number // total >= 4
        assert 500 <= chosen.steps <= 40_000
        assert config.optim.warmup < config.optim.epochs
        assert 1 <= config.data.num_workers < computer.cores or computer is CPU
        assert config.run.log_every <= chosen.steps / 10


@pytest.mark.parametrize("computer", [CPU, GPU], ids=["cpu", "gpu"])
def test_a_fine_tuning_from_scratch_trains_the_same_encoder_on_the_same_clips(
    computer: Computer,
) -> None:
    for about in ({}, {"frames": 12}, {"seconds": (2, 3, 4)}, {"seconds": None, "fps": None}):
        for number in (300, 30_000):
            pretraining, finetuning = _chosen(_videos(number, **about), computer)
            whole, alone = pretraining.config(), finetuning.config("model.init=null")
            for name in ("size", "width", "depth", "heads", "patch_size", "tubelet_size"):
                assert getattr(alone.model, name) == getattr(whole.model, name), name
            for name in ("num_frames", "crop_size", "sampling", "fps", "frame_stride"):
                assert getattr(alone.data, name) == getattr(whole.data, name), name


def test_fewer_epochs_get_as_many_records_and_evaluations() -> None:
    for chosen in _chosen(_videos(300), CPU):
        epochs, (every, why) = chosen["optim.epochs"], chosen.settings["run.log_every"]
        assert why.endswith(f", for {math.ceil(chosen.steps / every)} records")
        chosen.hours = 1
        fit_hours(chosen, 17.5 / epochs)
        assert chosen["optim.epochs"] == 17
        every, why = chosen.settings["run.log_every"]
        records = math.ceil(chosen.steps / every)
        assert records >= 100 and why.endswith(f", for {records} records")
        config = chosen.config()
        if chosen.job == "finetune":
            assert config.evaluation.every_epochs == 2
            _, why = chosen.settings["evaluation.every_epochs"]
            assert "for 9 evaluations" in why


def test_more_videos_mean_more_steps() -> None:
    for computer in (CPU, GPU):
        for job in (0, 1):
            steps = [_chosen(_videos(n), computer)[job].steps for n in (30, 300, 3000, 30_000)]
            assert steps == sorted(set(steps))


def test_the_recipe_follows_the_machine_and_the_videos() -> None:
    def recipe(videos: Videos, computer: Computer) -> str:
        return choose_pretraining(videos, computer).recipe

    small = Computer("a small GPU", cores=8, memory_gb=32, gpu_gb=8)
    assert {recipe(_videos(number), CPU) for number in NUMBERS} == {"own_videos_cpu"}
    assert {recipe(_videos(number), GPU) for number in NUMBERS[:-1]} == {"own_videos"}
    assert recipe(_videos(30_000), GPU) == "own_videos_base"
    assert recipe(_videos(30_000), small) == "own_videos"
    assert recipe(_videos(30_000, short_side=112), GPU) == "own_videos"
    assert choose_pretraining(_videos(300), CPU).config().model.predictor_input == "encoded"


def test_what_depends_on_nothing_is_that_of_the_recipe() -> None:
    """300 clips as short as those that the recipe was made for."""
    from hpm_video.config import PretrainConfig
    from hpm_video.config.recipe import find_named
    from hpm_video.config.settings import config_to_dict, differing_keys, load_config

    videos = _videos(300, frames=16, seconds=(2, 3, 4), fps=5, short_side=112)
    there = load_config(PretrainConfig, find_named("pretrain/own_videos_cpu"))
    here = choose_pretraining(videos, CPU).config()
    differing = differing_keys(config_to_dict(there), config_to_dict(here))
    assert set(differing) <= {"optim.epochs", "run.log_every"}
    assert abs(here.optim.epochs - there.optim.epochs) < 20


def test_clips_follow_the_length_of_the_videos() -> None:
    short = choose_pretraining(_videos(300, seconds=(2, 3, 4)), CPU).config().data
    assert (short.sampling, short.num_frames) == ("uniform", 8)
    long = choose_pretraining(_videos(300), GPU).config().data
    assert (long.sampling, long.fps, long.frame_stride, long.num_frames) == ("dense", 8, 1, 16)
    slow = choose_pretraining(_videos(300, fps=5.5), GPU).config().data
    assert slow.fps == 5
    timelapse = choose_pretraining(_videos(300, fps=0.25), GPU).config().data
    assert timelapse.fps == 0.25
    untold = choose_pretraining(_videos(300, fps=None, seconds=None), GPU).config().data
    assert (untold.sampling, untold.fps, untold.frame_stride) == ("dense", None, 2)
    few = choose_pretraining(_videos(300, frames=12, seconds=(2, 3, 4)), GPU).config().data
    assert few.num_frames == 8
    for computer in (CPU, GPU):
        pretraining, finetuning = (one.config().data for one in _chosen(_videos(300), computer))
        assert pretraining.fps == finetuning.fps
        assert pretraining.sampling == finetuning.sampling


@pytest.mark.parametrize("computer", [CPU, GPU], ids=["cpu", "gpu"])
def test_the_yaml_means_the_same_and_gives_every_reason(computer: Computer) -> None:
    for chosen in _chosen(_videos(300), computer):
        odd = '/a b/${HOME}/it\'s: #1, "x"\\${y}/ä'
        chosen.change("run.output_dir", odd, "two\nlines: of # a reason " * 20)
        chosen.change("data.manifest", [odd], "a list")
        text = chosen.yaml(["What this is", "", "  hpm-video x"])
        plain = yaml.safe_load(text)
        read = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
        assert isinstance(read, dict)
        flat = {f"{g}.{k}": v for g, group in read.items() for k, v in group.items()}
        assert flat == {key: value for key, (value, _) in chosen.settings.items()}
        assert chosen.config().run.output_dir == odd
        lines = text.splitlines()
        assert lines[:3] == ["# What this is", "#", "#   hpm-video x"]
        for before, line in pairwise(lines):
            if line.startswith("  ") and not line.startswith("  #"):
                assert before.startswith("  # ")
        assert all(len(line) <= 100 for line in lines if line.lstrip().startswith("#"))


def test_hours_bound_the_epochs() -> None:
    pretraining, finetuning = _chosen(_videos(300), CPU)
    before = pretraining["optim.epochs"]
    pretraining.hours = 40
    fit_hours(pretraining, 50)
    assert (pretraining["optim.epochs"], pretraining.hours) == (before, 40)
    fit_hours(pretraining, 10)
    assert pretraining["optim.epochs"] == before // 4 and pretraining.hours <= 10
    finetuning.hours = 1e6
    fit_hours(finetuning, 1)
    config = finetuning.config()
    assert (config.optim.epochs, config.optim.warmup, config.evaluation.every_epochs) == (1, 0, 1)


def test_hours_are_told_in_a_unit_in_which_they_are_not_zero() -> None:
    (pretraining, _) = _chosen(_videos(300), CPU)
    epochs = pretraining["optim.epochs"]
    pretraining.hours = 0.045
    fit_hours(pretraining, 0.01)
    _, why = pretraining.settings["optim.epochs"]
    assert why == f"as many as fit into 36 s; {epochs:,} epochs would take 2.7 min"
    told = [hours_in_words(hours) for hours in (1, 12, 2.54, 0.5, 1 / 60, 1e-3)]
    assert told == ["1 h", "12 h", "2.5 h", "30 min", "1 min", "3.6 s"]


def test_micro_batches_of_a_cpu_are_those_that_are_timed() -> None:
    from hpm_video.cli import start

    assert start._MICRO_BATCH == MOST_ON_CPU
