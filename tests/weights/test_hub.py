"""Models to and from a hub, which is one on this machine: `fake_hub`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from fake_hub import SHA, TOKEN, FakeHub

from hpm_video.cli.main import main
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.export.push import plan_upload
from hpm_video.weights.foreign.to_ours import import_weights

Arguments = Callable[..., list[str]]
# All in one process, as each takes seconds to start: (exit code, output, errors) of each command
PROGRAM = """
import contextlib, io, json, sys
from hpm_video.cli.main import main
done = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    done.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(done))
"""


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """A pre-training as transformers reads it."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert (
        main(["weights", "export", str(pretrained), "-o", str(folder), "--to", "huggingface"]) == 0
    )
    return folder


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        yield running


@pytest.fixture
def ask(hub: FakeHub, tmp_path: Path) -> Callable[..., list[Done]]:
    """Run commands that know the hub, each a list of words; variables as keywords."""

    def run(*commands: Sequence[object], **variables: str) -> list[Done]:
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "HUGGING"))}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps([[*map(str, words)] for words in commands])],
            env={**clean, **hub.environment(tmp_path / "cache"), **variables},
            stdout=subprocess.PIPE,
            text=True,
            timeout=600,
            check=True,
        )
        return [Done(*found) for found in json.loads(done.stdout.splitlines()[-1])]

    return run


def _refusal(done: Done) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_there_and_back(
    exported: Path, hub: FakeHub, ask: Callable[..., list[Done]], tmp_path: Path
) -> None:
    output = tmp_path / "ours.pt"
    done, back = ask(
        ("push", exported, "me/model"),
        ("weights", "import", "hf://me/model", "-o", output),
        HF_TOKEN=TOKEN,
    )
    assert done.returncode == 0, done.stderr
    asked = hub.made["me/model"]
    assert asked.get("visibility") == "private" or asked.get("private") is True  # by version
    assert {name for name in hub.files if "attributes" not in name} == {
        f"me/model/{path.name}" for path in exported.iterdir()
    }
    assert hub.files["me/model/model.safetensors"] == (exported / "model.safetensors").read_bytes()
    assert "missing: a licence: `license: NAME`" in done.stdout
    assert back.returncode == 0, back.stderr
    mine, theirs = load_checkpoint(output)["model"], import_weights(exported).state["model"]
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    # What is in the cache needs no hub any more
    hub.files.clear()
    (again,) = ask(("weights", "inspect", f"hf://me/model@{SHA}"), HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and "Hugging Face" in again.stdout, again.stderr


def test_commands_take_models_of_a_hub(
    exported: Path,
    pretrained: Path,
    hub: FakeHub,
    ask: Callable[..., list[Done]],
    finetune_arguments: Arguments,
    tmp_path: Path,
) -> None:
    """A run starts from one, a classifier names classes, and one file of a repository is read."""
    for path in exported.iterdir():
        hub.files[f"me/model/{path.name}"] = path.read_bytes()
    hub.files["me/model/pytorch_model.bin"] = b"the same weights again"
    hub.files["me/runs/first/ours.pt"] = (pretrained / "checkpoints" / "last").read_bytes()
    run, folder = tmp_path / "run", tmp_path / "classifier"
    command = finetune_arguments(run, "model.init=hf://me/model", "optim.epochs=1")
    done, sent, named = ask(
        command,
        ("weights", "export", run, "-o", folder, "--to", "huggingface"),
        ("weights", "inspect", "hf://me/runs/first/ours.pt"),
    )
    assert (done.returncode, sent.returncode, named.returncode) == (0, 0, 0)
    assert "of hf://me/model" in (run / "log.txt").read_text()
    assert not any("pytorch_model.bin" in request for request in hub.requests)
    assert "base_model: me/model" in (folder / "README.md").read_text()
    assert "step 12" in named.stdout
    for path in folder.iterdir():
        hub.files[f"me/classifier/{path.name}"] = path.read_bytes()
    videos = next(word for word in command if word.startswith("data.manifest=")).partition("=")[2]
    settings = ("--device", "cpu", "num_workers=0", "clip.frame_stride=1", "clip.num_frames=4")
    theirs, ours, asked = ask(
        *(
            (job, model, "--manifest", videos, *settings)
            for job, model in (
                ("predict", "hf://me/classifier"),
                ("predict", run),
                ("evaluate", "hf://me/classifier"),
            )
        )
    )
    assert theirs.returncode == 0, theirs.stderr
    assert theirs.stdout == ours.stdout and ours.stdout.count("\n") == 25
    assert "--output-dir (none) must name a folder for results" in _refusal(asked)


def test_what_cannot_be_had_is_one_line(
    hub: FakeHub, ask: Callable[..., list[Done]], pretrain_arguments: Arguments, tmp_path: Path
) -> None:
    hub.files["me/model/config.json"] = b"{}"
    cases = {
        "hf://me": ["must be hf://OWNER/NAME or hf://OWNER/NAME/FILE"],
        "hf://me/model/../../x.pt": ["must be hf://OWNER/NAME"],
        "hf://me/none": ["hf://me/none is not on http://127", "private", "hf auth login"],
        "hf://me/model@nowhere": ["hf://me/model@nowhere is not on"],
        "hf://me/model/weights.pt": ["the repository has no file weights.pt"],
    }
    commands = [pretrain_arguments(tmp_path / "run", f"model.init={place}") for place in cases]
    for done, words in zip(ask(*commands), cases.values(), strict=True):
        line = _refusal(done)
        assert all(word in line for word in words), line
    command = ("weights", "inspect", "hf://me/model@v1")
    (offline,) = ask(command, HF_HUB_OFFLINE="1")
    for words in (
        "HF_HUB_OFFLINE is set",
        "`hf download me/model --revision v1`",
        "cache/hub",
        "HF_HUB_CACHE",
    ):
        assert words in _refusal(offline)
    (cut,) = ask(command, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be downloaded (" in _refusal(cut)
    assert not (tmp_path / "run").exists()


def test_without_a_token_nothing_is_sent(
    exported: Path, hub: FakeHub, ask: Callable[..., list[Done]]
) -> None:
    command = ("push", exported, "me/model")
    asked, dry = ask(command, (*command, "--dry-run"))
    assert asked.returncode == 2 and "as there is no token" in asked.stderr
    assert dry.returncode == 0 and "dry run: nothing was uploaded" in dry.stdout
    for done in (asked, dry):
        assert all(path.name in done.stdout for path in exported.iterdir())
        assert "MB to me/model (private if it is new)" in done.stdout
        assert "missing: text for 2 passages of README.md marked TO BE FILLED IN" in done.stdout
    (refused,) = ask(command, HF_TOKEN="hf_another")
    assert "upload to REPO (me/model) failed: " in _refusal(refused)
    assert not hub.files


def _complete(exported: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_card_that_was_filled_in_misses_nothing(exported: Path, tmp_path: Path) -> None:
    folder = _complete(exported, tmp_path / "model")
    card = (folder / "README.md").read_text()
    card = card.replace("license:  # TO BE FILLED IN", "license: mit  # as agreed")
    (folder / "README.md").write_text(card.replace("TO BE FILLED IN", "known"))
    assert plan_upload(folder).missing == ()
    (folder / "README.md").unlink()
    (folder / "preprocessor_config.json").unlink()
    assert [words.split()[0].strip(":,") for words in plan_upload(folder).missing] == [
        "preprocessor_config.json",
        "README.md",
    ]


@pytest.mark.parametrize("name", [".env", "step_00000012.pt", "id_rsa", "notes.txt", "video.csv"])
def test_other_files_stay(exported: Path, tmp_path: Path, name: str) -> None:
    folder = _complete(exported, tmp_path / "model")
    (folder / name).write_text("x")
    with pytest.raises(
        ValueError, match=rf"nothing but an exported model; move elsewhere: '{name}'"
    ):
        plan_upload(folder)


def test_links_secrets_and_other_folders_stay(
    exported: Path, pretrained: Path, tmp_path: Path
) -> None:
    folder = _complete(exported, tmp_path / "model")
    (folder / "picture.png").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"move elsewhere: 'picture.png'"):
        plan_upload(folder)
    (folder / "picture.png").unlink()
    (folder / "videos").mkdir()
    with pytest.raises(ValueError, match=r"move elsewhere: 'videos'"):
        plan_upload(folder)
    (folder / "videos").rmdir()
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card + "\nexport HF_TOKEN=hf_" + "a" * 34)
    with pytest.raises(ValueError, match=r"README.md contains text that looks like a token"):
        plan_upload(folder)
    (folder / "README.md").write_text(card)
    (folder / "config.json").write_text(json.dumps([1]))
    with pytest.raises(
        ValueError, match=r"holds no exported model; export .* hpm-video weights export"
    ):
        plan_upload(folder)
    with pytest.raises(ValueError, match=r"is a run folder; export .* hpm-video weights export"):
        plan_upload(pretrained)
    with pytest.raises(ValueError, match="must be a folder written by"):
        plan_upload(tmp_path / "nowhere")


def test_names_of_repositories(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for repo in ("model", "me/model/file", "hf://me/model", "me/.."):
        assert main(["push", "--dry-run", str(exported), repo]) == 2
        assert "must be OWNER/NAME" in capsys.readouterr().err
