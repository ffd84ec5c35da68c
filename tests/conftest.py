"""What several test files share: threads, a small set of toy videos, and the smallest settings."""

import os
import shutil
import signal

# Read when torch is imported: threads that spin while they wait starve each other on few cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hpm_video.data.prepare.toy import write_toy_videos

torch.set_num_threads(1)

# Shells have what they start in the background ignore these, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

NUM_TOY_VIDEOS = 24

# A model of two blocks on clips of 4 frames, 32 x 32 pixels: a grid of 2 x 4 x 4 tokens. Without
# data workers and with one thread, runs are repeatable and start at once.
_SHARED = (
    "run.device=cpu",
    "run.precision=float32",
    "run.log_every=2",
    "run.save_in_background=false",  # what is saved is there after the step
    "data.num_frames=4",
    "data.frame_stride=1",
    "data.crop_size=32",
    "data.batch_size=4",
    "data.num_workers=0",
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "model.patch_size=8",
    "optim.epochs=2",
    "optim.warmup_epochs=0",
)
_PRETRAIN = (
    *_SHARED,
    "run.picture_every=0",
    "model.decoder_width=32",
    "model.decoder_heads=2",
    "model.decoder_depth=1",
    "model.predictor_depth=1",
    "masking.mask_ratio=0.75",
    "masking.hard_ratio_end=1.0",
    "optim.base_lr=0.064",
)
_FINETUNE = (
    *_SHARED,
    "optim.base_lr=0.064",
    "model.drop_path=0",
    "augment.num_operations=0",
    "augment.erasing=0",
    "mixing.mixup=0",
    "mixing.cutmix=0",
)

Arguments = Callable[..., list[str]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, as tests on a cluster mostly wait."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.fixture(scope="session", autouse=True)
def _records_of_submissions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests submit is none of the user's jobs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 24 toy videos of 12 frames, 32 x 32 pixels, in 8 classes."""
    folder = tmp_path_factory.mktemp("toy")
    return write_toy_videos(
        folder, num_videos=NUM_TOY_VIDEOS, size=32, num_frames=12, formats=("mp4",)
    )


@pytest.fixture(scope="session")
def empty_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML that states nothing: every setting then comes from the command line."""
    path = tmp_path_factory.mktemp("config") / "debug.yaml"
    path.write_text("{}\n")
    return path


@pytest.fixture(scope="session")
def pretrain_arguments(toy: Path, empty_config: Path) -> Arguments:
    """A function (run folder, settings...) -> arguments of a small pre-training."""

    def arguments(folder: Path, *settings: str) -> list[str]:
        where = (f"run.output_dir={folder}", f"data.manifest={toy}")
        return ["pretrain", str(empty_config), *_PRETRAIN, *where, *settings]

    return arguments


@pytest.fixture(scope="session")
def finetune_arguments(toy: Path, empty_config: Path) -> Arguments:
    """A function (run folder, settings...) -> arguments of a small fine-tuning."""

    def arguments(folder: Path, *settings: str) -> list[str]:
        where = (f"run.output_dir={folder}", f"data.manifest={toy}")
        return ["finetune", str(empty_config), *_FINETUNE, *where, *settings]

    return arguments


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, pretrain_arguments: Arguments) -> Path:
    """The folder of a finished pre-training with hard masks."""
    from hpm_video.cli.main import main

    folder = tmp_path_factory.mktemp("pretrained") / "run"
    assert main(pretrain_arguments(folder)) == 0
    return folder


@pytest.fixture
def readers_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """For stand-ins for readers, which leave notes in files; real readers cannot write."""
    from hpm_video.data.loading import batches, windows
    from hpm_video.data.prepare import check
    from hpm_video.data.video.limits import WRITING

    for module in (batches, windows, check):
        monkeypatch.setattr(module, "READING", WRITING)


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """For tests marked `gpu`."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser, for the pages that we write; what it complains of is in its log."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1300,1600"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_page_load_timeout(240)
    opened.set_script_timeout(60)
    yield opened
    opened.quit()
