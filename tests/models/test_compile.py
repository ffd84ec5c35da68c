"""The compiled model: one graph, whatever the schedules do."""

import os
import stat
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import nop
from processes import run_together
from runs import assert_same_run, run_until_stopped
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from hpm_video.cli.main import main
from hpm_video.config import LossConfig, MaskingConfig, PretrainConfig, RunConfig
from hpm_video.config.settings import config_from_dict, config_to_dict, load_config
from hpm_video.method.step import pretrain_step
from hpm_video.method.teacher import Teacher, score_tokens
from hpm_video.models.compiling import choose_compile, compile_parts
from hpm_video.models.hpm import HPM, PredictorInput
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import ViTSize
from hpm_video.runtime.distributed import World
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import load_checkpoint

WORLD = World(0, 1, torch.device("cpu"))

# Long enough, in the decoders, for attention in blocks
GRID = TokenGrid(8, 9, 8)


@pytest.mark.parametrize("predictor_input", ["pixels", "encoded", "both"])
def test_a_step_is_one_graph_and_stays_it_while_hard_ratio_moves(
    predictor_input: PredictorInput,
) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    student = HPM(
        GRID,
        ViTSize(tubelet_size=2, patch_size=4, width=16, depth=1, heads=2),
        decoder_width=16,
        decoder_heads=2,
        decoder_depth=1,
        predictor_input=predictor_input,
    )
    teacher = Teacher(student)
    counter = CompileCounter()
    compiled = torch.compile(student, backend=counter, fullgraph=True)
    clips = torch.rand(2, 3, 16, 36, 32, generator=torch.Generator().manual_seed(0))
    for hard_ratio in (0.1, 0.25, 0.3, 0.5, torch.tensor(0.4, dtype=torch.float64)):
        losses = []
        for model in (student, compiled):
            result = pretrain_step(
                model,
                teacher,
                clips,
                grid=GRID,
                masking=MaskingConfig(),
                loss=LossConfig(),
                predictor_input=predictor_input,
                hard_ratio=hard_ratio,
                token_ratio=0.25,
                generator=torch.Generator().manual_seed(0),
                precision="bfloat16",
            )
            result.loss.backward()
            losses.append(result.loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert counter.frame_count == 1


@pytest.mark.parametrize("predictor_input", ["both", "encoded"])
def test_a_compiled_teacher_scores_as_an_eager_one(predictor_input: PredictorInput) -> None:
    """By PyTorch's own compiler, tokens that it does not see too."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    grid = TokenGrid(2, 4, 4)
    size = ViTSize(tubelet_size=2, patch_size=8, width=16, depth=1, heads=2)
    sizes = {"decoder_width": 16, "decoder_heads": 2, "decoder_depth": 1}
    teacher = Teacher(HPM(grid, size, **sizes, predictor_input=predictor_input))
    clips = torch.rand(3, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    found = [
        score_tokens(each, clips, token_ratio=0.5, generator=torch.Generator().manual_seed(1))
        for each in (teacher, torch.compile(teacher))
    ]
    assert (found[0] - found[1]).abs().max() < 1e-3 * found[0].std()


def test_auto_compiles_on_cuda_and_a_run_keeps_what_it_had() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert choose_compile("auto", cuda) == ("true", "on CUDA")
    assert choose_compile("auto", cpu) == ("false", "on a CPU")
    assert choose_compile("auto", cuda, kept="auto")[0] == "true"
    for kept in ("false", False):  # and as runs from before auto have it
        assert choose_compile("auto", cuda, kept=kept) == ("false", "as before")
    assert choose_compile("auto", cuda, kept=True) == ("true", "as before")
    # One that was begun on CUDA is not compiled on a CPU, unless it was asked for
    assert choose_compile("auto", cpu, kept="true")[0] == "false"
    assert choose_compile("true", cpu, kept="false") == ("true", None)
    assert choose_compile("false", cuda, kept="true") == ("false", None)


@pytest.mark.parametrize(
    ("given", "meant"), [("true", "true"), ("false", "false"), ("auto", "auto"), ("always", None)]
)
def test_truth_values_of_old_settings_are_words(
    tmp_path: Path, given: str, meant: str | None
) -> None:
    (tmp_path / "old.yaml").write_text(f"run:\n  compile: {given}\n")
    for words in ([tmp_path / "old.yaml"], [None, [f"run.compile={given}"]]):
        if meant is None:
            with pytest.raises(ValueError, match=r"must be one of auto, true, false"):
                load_config(PretrainConfig, *words)
            continue
        config = load_config(PretrainConfig, *words)
        assert config.run.compile == meant
        assert config_from_dict(PretrainConfig, config_to_dict(config)) == config
    of_checkpoint = {"run": {"compile": True}}  # as config_to_dict gave it then
    assert config_from_dict(PretrainConfig, of_checkpoint).run.compile == "true"


def _failing(graph: Any, inputs: Any) -> Any:
    raise OSError("no compiler here\nand more")


def _failing_backward() -> Any:
    return aot_autograd(fw_compiler=nop, bw_compiler=_failing)


@pytest.mark.parametrize("backend", [_failing, _failing_backward()], ids=["forward", "backward"])
def test_what_cannot_be_compiled_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, backend: Any
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.rand(2, 3)
    expected = model(x)
    said: list[str] = []
    run = RunConfig(compile="true")
    compile_parts({"student": model}, run, WORLD, said.append)
    for _ in range(2):
        assert torch.equal(model(x), expected)
        model(x).sum().backward()
    assert said == [
        "run.compile: the student runs eagerly, as compiling it failed: OSError: no compiler here"
    ]


def test_errors_of_the_model_itself_stay_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))

    class Refusing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("not such clips")

    said: list[str] = []
    model = Refusing()
    compile_parts({"student": model}, RunConfig(compile="true"), WORLD, said.append)
    with pytest.raises(ValueError, match="not such clips"):
        model(torch.ones(1))


def test_nothing_is_compiled_unasked() -> None:
    model, say = nn.Linear(1, 1), pytest.fail
    for run in (RunConfig(), RunConfig(compile="false")):
        compile_parts({"student": model}, run, WORLD, say)
        assert model._compiled_call_impl is None


def test_a_compiled_run_is_the_same_run(
    tmp_path: Path, pretrain_arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records, names of weights, and resuming bit for bit; student and teacher compiled."""
    torch._dynamo.reset()
    settings = ("run.log_every=1", "teacher.token_ratio=0.5", "masking.hard_ratio_start=0.5")
    assert main(pretrain_arguments(tmp_path / "eager", *settings)) == 0
    names: list[str] = []

    def compile_with(function: Any) -> Any:
        names.append(getattr(function, "__self__", function).__class__.__name__)
        return real(function, backend="aot_eager")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_with)
    asked = (*settings, "run.compile=true")
    assert main(pretrain_arguments(tmp_path / "whole", *asked)) == 0
    assert names == ["HPM", "Teacher"]
    run_until_stopped(pretrain_arguments(tmp_path / "parts", *asked), at=5)
    # As before, though it is not asked for any more and this is a CPU
    assert load_checkpoint(tmp_path / "parts")["config"]["run"]["compile"] == "true"
    assert main(pretrain_arguments(tmp_path / "parts", *asked)) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    losses = [[r["loss"] for r in read_records(tmp_path / n)] for n in ("eager", "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    mine, theirs = (load_checkpoint(tmp_path / name) for name in ("eager", "whole"))
    for part in ("model", "teacher"):
        assert mine[part].keys() == theirs[part].keys()


COMPILED = """
import torch
from functools import partial
torch.compile = partial(torch.compile, backend="aot_eager")
"""


def test_two_processes_compile_what_they_share(
    tmp_path: Path, pretrain_arguments: Callable[..., list[str]]
) -> None:
    """Whole under DDP; block by block under FSDP and where blocks run twice."""
    settings = (
        *("run.log_every=1", "optim.epochs=1", "optim.accumulation=2", "data.batch_size=3"),
        *("teacher.token_ratio=0.5", "masking.hard_ratio_start=0.5"),
    )
    forms = {
        "plain": ["run.compile=false"],
        "ddp": ["run.compile=true"],
        "fsdp": ["run.compile=true", "run.parallel=fsdp"],
        "twice": ["run.compile=true", "run.activation_checkpointing=true"],
    }
    jobs = [pretrain_arguments(tmp_path / name, *settings, *more) for name, more in forms.items()]
    for done in run_together(2, jobs, before=COMPILED, timeout_s=600):
        assert done.returncode == 0, done.stderr
        assert "eagerly" not in done.stdout + done.stderr
    names = ("loss", "grad_norm", "ema_distance")
    records = {
        form: [[record[name] for name in names] for record in read_records(tmp_path / form)]
        for form in forms
    }
    assert len(records["plain"]) == 2
    for of_form in records.values():
        for mine, theirs in zip(of_form, records["plain"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, which all users share, beside the user's own of caches."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "x")  # so that it is as before afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    return folder


def _cache() -> Path:
    """Where a run that compiles keeps what was compiled."""
    compile_parts({"model": nn.Linear(2, 2)}, RunConfig(compile="true"), WORLD, print)
    return Path(os.environ.pop("TORCHINDUCTOR_CACHE_DIR"))


def test_what_was_compiled_lies_in_a_private_folder(shared: Path) -> None:
    ours = _cache().parent
    assert ours.parent == shared and stat.S_IMODE(ours.stat().st_mode) == 0o700
    assert _cache().parent == ours


@pytest.mark.parametrize("kind", ["link", "open", "stranger", "shared folder"])
def test_a_planted_cache_is_not_used(shared: Path, tmp_path: Path, kind: str) -> None:
    planted = shared / f"hpm_video_{os.geteuid()}"
    (tmp_path / "other").mkdir(mode=0o700)
    if kind == "link":
        planted.symlink_to(tmp_path / "other")
    elif kind == "open":
        planted.mkdir()
        planted.chmod(0o770)
    elif kind == "shared folder":
        shared.chmod(0o777)  # where everybody renames everything
    elif os.geteuid() == 0:
        planted.mkdir(mode=0o700)
        os.chown(planted, 54321, 54321)
    else:
        pytest.skip("only root makes files of other users")
    assert _cache().parent == tmp_path / "home" / "hpm_video"
    # Where neither will do, nobody else knows the name
    (tmp_path / "home" / "hpm_video").chmod(0o755)
    last = _cache()
    assert last.parent == shared and last != planted
    assert stat.S_IMODE(last.stat().st_mode) == 0o700


def test_the_users_cache_stays_and_without_compiling_there_is_none(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_parts({"model": nn.Linear(2, 2)}, RunConfig(compile="false"), WORLD, print)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/of/the/user")
    assert _cache() == Path("/of/the/user")
    assert not list(shared.iterdir())


class _Small(nn.Module):
    """A module of ours: PyTorch 2.10 does not compile its own containers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.layer(x))


def test_what_is_compiled_lands_there(shared: Path) -> None:
    """Also where PyTorch has set its default, as it does when it is imported."""
    torch._dynamo.reset()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = default_cache_dir()
    model = _Small()
    compile_parts({"model": model}, RunConfig(compile="true"), WORLD, print)
    model(torch.zeros(3, 2))
    cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert list(cache.rglob("*.py")) and not list(shared.glob("torchinductor_*"))
