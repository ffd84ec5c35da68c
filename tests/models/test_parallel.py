"""Spread over processes: FSDP computes what DDP computes, and checkpoints go from any to any."""

import copy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import run_together
from runs import tensors
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from hpm_video.cli.main import main
from hpm_video.config import RunConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.models.parallel import clip_gradients, gather_policy, spread, whole
from hpm_video.models.vit import Block
from hpm_video.runtime.distributed import World, replicate, sync_gradients
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import find_checkpoint, load_checkpoint

Arguments = Callable[..., list[str]]

# Two epochs of two steps of twelve clips, which two processes and three can share. Hard masks from
# the start and a teacher that moves, gradients added up over two parts, and clipped.
SETTINGS = (
    *("optim.epochs=2", "run.log_every=1", "optim.accumulation=2", "optim.clip_grad=0.5"),
    *("masking.hard_ratio_start=0.5", "teacher.token_ratio=0.5"),
    *("teacher.momentum_start=0.5", "teacher.momentum_end=0.5"),
    *("run.checkpoint_every_minutes=0", "run.keep_checkpoints=0"),
)
FSDP = "run.parallel=fsdp"
TOLERANCE = 2e-5  # four steps move weights by 1e-3 to 6e-3
# What differs in the last digits between runs that are the same but for the order of sums.
FIGURES = ("loss", "reconstruction_loss", "prediction_loss", "grad_norm", "ema_distance")

# Losses become infinite in the second step of runs of this name, on the second process.
BAD = """
import os
from dataclasses import replace
import torch
from hpm_video.train import pretrain as module
from hpm_video.method import step as step_module

run_all, run_step = module.pretrain, step_module.pretrain_step
count, name = 0, ""

def pretrain(config, **named):
    global count, name
    count, name = 0, config.run.output_dir
    return run_all(config, **named)

def pretrain_step(*arguments, **named):
    global count
    count += 1
    step = run_step(*arguments, **named)
    if "bad" in name and count == 3 and os.environ["RANK"] == "1":
        step = replace(step, losses={**step.losses, "loss": step.loss * torch.inf})
    return step

module.pretrain, step_module.pretrain_step = pretrain, pretrain_step
"""

# The second process is killed in the middle of its second save.
KILLED = """
import os, signal, time
from hpm_video.weights import checkpoint
from hpm_video.weights import shards

saves, write = 0, checkpoint.write_shards

def write_shards(folder, tensors, group):
    global saves
    saves += 1
    if saves == 2:
        if os.environ["RANK"] == "1":
            (folder / "__1_0.distcp").write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
    write(folder, tensors, group)

checkpoint.write_shards = write_shards
"""


def test_gradients_are_clipped_to_a_norm_or_left_alone() -> None:
    module, norm = nn.Linear(2, 1), 13.0
    module.weight.grad, module.bias.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([12.0])
    assert clip_gradients(module, None).item() == pytest.approx(norm)
    assert module.weight.grad.tolist() == [[3.0, 4.0]] and module.bias.grad.tolist() == [12.0]
    assert clip_gradients(module, 6.5).item() == pytest.approx(norm)
    assert module.weight.grad[0].tolist() == pytest.approx([1.5, 2.0])
    assert module.bias.grad.tolist() == pytest.approx([6.0])


def _step(folder: Path, step: int) -> Path:
    """The checkpoint of a step, of either form."""
    (found,) = (folder / "checkpoints").glob(f"step_{step:08d}*")
    return found


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    pretrain_arguments: Arguments,
    finetune_arguments: Arguments,
    toy: Path,
) -> Path:
    """A folder of runs by two processes: whole ones, resumed ones, such with a bad step, and
    fine-tunings with three videos to evaluate on, of which one process has more than the other."""
    folder = tmp_path_factory.mktemp("runs")
    manifest = read_manifest(toy)
    lines = [f"{manifest.path(k)},{manifest.labels[k]}" for k in (0, 3, 5)]
    (folder / "val.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    evaluated = (
        *(f"data.val_manifest={folder / 'val.csv'}", "evaluation.batch_size=1"),
        *("evaluation.every_epochs=1", "run.log_every=3", f"model.init={folder / 'fsdp'}"),
    )

    def of(name: str, *settings: str) -> list[str]:
        return pretrain_arguments(folder / name, *SETTINGS, "data.batch_size=3", *settings)

    jobs = [
        of("ddp"),
        of("fsdp", FSDP, "run.save_in_background=true"),
        of("fsdp_from_ddp", FSDP, f"run.resume={folder}/ddp/checkpoints/step_00000002.pt"),
        of("ddp_from_fsdp", f"run.resume={folder}/fsdp/checkpoints/step_00000002"),
        of("shares_of_one", FSDP, "run.shard_processes=1", "run.activation_checkpointing=true"),
        of("bad_ddp"),
        of("bad_fsdp", FSDP),
        finetune_arguments(folder / "tuned_ddp", *evaluated),
        finetune_arguments(folder / "tuned_fsdp", *evaluated, FSDP),
    ]
    for done in run_together(2, jobs, before=BAD):
        assert done.returncode == 0, done.stderr
    return folder


def assert_close_tensors(one: Path, other: Path, tolerance: float = TOLERANCE) -> None:
    """Student, teacher and moments agree within a tolerance far below what training moved.

    Left out are two biases of the predictor's end: they add the same to all predictions, so that
    the ranking loss has no gradient for them but rounding errors, which Adam scales up.
    """
    mine, theirs = (tensors(folder) for folder in (one, other))
    assert mine.keys() == theirs.keys()
    assert {"model", "teacher", "optimizer"} == {name.split("/")[1] for name in mine}
    for name, value in mine.items():
        if "predictor.head.bias" not in name and "predictor.norm.bias" not in name:
            assert (value - theirs[name]).abs().max() < tolerance, name


def assert_close(one: Path, other: Path, *, since: int = 1, tolerance: float = TOLERANCE) -> None:
    """Records from a step on and what the last checkpoint holds agree."""
    records = [
        [[r[name] for name in FIGURES] for r in read_records(folder) if r["step"] >= since]
        for folder in (one, other)
    ]
    assert len(records[0]) > 0
    for mine, theirs in zip(*records, strict=True):
        assert mine == pytest.approx(theirs, rel=5 * tolerance)
    assert_close_tensors(one, other, tolerance)


def test_fsdp_computes_what_ddp_computes(runs: Path) -> None:
    """Losses, gradient norms, weights, moments and the teacher's average, over four steps."""
    assert [record["step"] for record in read_records(runs / "fsdp")] == [1, 2, 3, 4]
    assert_close(runs / "fsdp", runs / "ddp")
    assert (runs / "ddp" / "checkpoints" / "last").is_file()
    assert len(list((runs / "fsdp" / "checkpoints" / "last").glob("*.distcp"))) == 2


def test_the_tolerance_tells_runs_apart(runs: Path) -> None:
    with pytest.raises(AssertionError):
        assert_close(runs / "fsdp", runs / "bad_ddp", since=3, tolerance=20 * TOLERANCE)


def test_each_process_may_have_a_copy_of_its_own(runs: Path) -> None:
    """And blocks may run twice."""
    assert_close(runs / "shares_of_one", runs / "ddp")


def test_each_form_continues_the_other(runs: Path) -> None:
    for name in ("fsdp_from_ddp", "ddp_from_fsdp"):
        assert "continues after step 2 of" in (runs / name / "log.txt").read_text()
        assert_close_since(runs / name, runs / "ddp")


def assert_close_since(resumed: Path, whole: Path) -> None:
    assert [record["step"] for record in read_records(resumed)] == [3, 4]
    assert_close(resumed, whole, since=3)


def test_a_bad_step_is_skipped_by_all(runs: Path) -> None:
    for name in ("bad_ddp", "bad_fsdp"):
        assert [r["skipped_steps"] for r in read_records(runs / name)] == [0, 1, 0, 0]
    assert_close_tensors(runs / "bad_fsdp", runs / "bad_ddp")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_continues_what_two_began(
    runs: Path, tmp_path: Path, pretrain_arguments: Arguments, parallel: str
) -> None:
    settings = (*SETTINGS, "data.batch_size=6", f"run.parallel={parallel}")
    resume = f"run.resume={_step(runs / 'fsdp', 2)}"
    assert main(pretrain_arguments(tmp_path / "run", *settings, resume)) == 0
    assert_close_since(tmp_path / "run", runs / "ddp")
    assert (tmp_path / "run" / "checkpoints" / "last").is_dir() == (parallel == "fsdp")


def test_three_processes_continue_what_two_began(
    runs: Path, tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    settings = (*SETTINGS, "data.batch_size=2", FSDP, f"run.resume={_step(runs / 'fsdp', 2)}")
    for done in run_together(3, [pretrain_arguments(tmp_path / "run", *settings)]):
        assert done.returncode == 0, done.stderr
    assert_close_since(tmp_path / "run", runs / "ddp")


def test_a_kill_during_a_save_leaves_the_one_before(
    runs: Path, tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    saves = ("run.save_in_background=true", "run.history_checkpoints=0")
    settings = (*SETTINGS, "data.batch_size=3", FSDP, *saves)
    job = pretrain_arguments(tmp_path / "run", *settings)
    codes = [done.returncode for done in run_together(2, [job], before=KILLED)]
    assert codes[0] != 0 and codes[1] == -signal.SIGKILL
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "step_00000002.part" / "__1_0.distcp").is_file()
    assert find_checkpoint(tmp_path / "run").resolve().name == "step_00000001"
    assert load_checkpoint(tmp_path / "run")["step"] == 1
    for done in run_together(2, [job]):
        assert done.returncode == 0, done.stderr
    assert "continues after step 1 of" in (tmp_path / "run" / "log.txt").read_text()
    assert not list(folder.glob("*.part"))
    assert_close(tmp_path / "run", runs / "ddp")


def test_fine_tuning_from_shards_to_an_evaluation(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, theirs = (read_records(runs / name) for name in ("tuned_fsdp", "tuned_ddp"))
    tops = [record["top1"] for record in mine if "top1" in record]
    assert len(tops) == 2
    for one, other in zip(mine, theirs, strict=True):
        for name in {"loss", "grad_norm", "top1", "top5"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=5 * TOLERANCE), name
    videos = ["--manifest", str(runs / "val.csv")]
    settings = ["device=cpu", "precision=float32", "num_workers=0"]
    assert main(["evaluate", str(runs / "tuned_fsdp"), *videos, *settings]) == 0
    assert f"top1 {tops[-1]:.4f} " in capsys.readouterr().out


def test_blocks_that_run_twice_change_no_bit(
    tmp_path: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stochastic depth, too, which draws from the global generator."""
    settings = ("model.drop_path=0.3", "model.decoder_depth=2", "optim.epochs=1")
    run, calls = Block._run, []
    monkeypatch.setattr(Block, "_run", lambda *arguments: calls.append(1) or run(*arguments))
    assert main(pretrain_arguments(tmp_path / "once", *settings)) == 0
    num_once = len(calls)
    twice = "run.activation_checkpointing=true"
    assert main(pretrain_arguments(tmp_path / "twice", *settings, twice)) == 0
    # Those of the student, per step two that encode, two that decode and one that predicts
    assert len(calls) == 2 * num_once + 6 * 5
    states = [tensors(tmp_path / name) for name in ("once", "twice")]
    assert len(states[0]) > 100
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_only_the_last_micro_batch_talks_to_the_others(group_of_one: None) -> None:
    sent: list[int] = []

    def send(state: int, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent.append(micro_batch)
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    whole = DistributedDataParallel(nn.Linear(2, 2))
    whole.register_comm_hook(0, send)
    cut = fully_shard(nn.Linear(2, 2), mesh=init_device_mesh("cpu", (1,)))
    for micro_batch in range(3):
        for model in (whole, cut):
            with sync_gradients(model, micro_batch == 2):
                model(torch.ones(1, 2)).sum().backward()
        # FSDP's parts have a gradient once the processes have added theirs up.
        has_gradient = [parameter.grad is not None for parameter in cut.parameters()]
        assert has_gradient == [micro_batch == 2] * 2
    assert sent == [2]
    assert torch.equal(cut.weight.grad.full_tensor(), torch.full((2, 2), 3.0))
    assert torch.equal(whole.module.weight.grad, torch.full((2, 2), 3.0))


def test_blocks_are_gathered_in_the_precision_they_compute_in(
    group_of_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA, whose autocast gives norms what they need in float32; so does this stand-in."""
    norm = F.layer_norm

    def as_on_cuda(x: torch.Tensor, shape: Any, *rest: Any) -> torch.Tensor:
        return norm(x.float(), shape, *(r.float() if torch.is_tensor(r) else r for r in rest))

    monkeypatch.setattr(F, "layer_norm", as_on_cuda)
    torch.manual_seed(0)
    plain = Block(32, 2, mlp_ratio=4.0)
    x = torch.randn(2, 8, 32)
    results = []
    for policy in (None, gather_policy("bfloat16", torch.device("cuda"))):
        block = copy.deepcopy(plain)
        dtypes: list[torch.dtype] = []
        if policy is not None:
            fully_shard(block, mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)
        hook = block.mlp.register_forward_pre_hook(
            lambda mlp, _, found=dtypes: found.append(mlp.fc1.weight.dtype)
        )
        for _ in range(2):  # gradients of two micro-batches add up in float32
            sync_gradients(block, _ == 1)
            with torch.autocast("cpu", torch.bfloat16):
                stream, branch = block(x)
            y = stream + branch
            y.square().sum().backward()
        hook.remove()
        assert y.dtype == torch.float32 and set(dtypes) == {
            torch.float32 if policy is None else torch.bfloat16
        }
        gradients = [whole(parameter.grad) for parameter in block.parameters()]
        assert {g.dtype for g in gradients} == {torch.float32}
        results.append([y.detach(), *gradients])
    for mine, theirs in zip(*results, strict=True):
        assert (mine - theirs).norm() <= 0.01 * theirs.norm()


@pytest.mark.parametrize(("precision", "kind"), [("float32", "cuda"), ("bfloat16", "cpu")])
def test_elsewhere_weights_are_gathered_as_they_are(precision: str, kind: str) -> None:
    assert gather_policy(precision, torch.device(kind)) == MixedPrecisionPolicy()


@pytest.mark.parametrize("has_statistics", [True, False])
def test_only_statistics_are_sent_with_every_step(group_of_one: None, has_statistics: bool) -> None:
    layers = [nn.Linear(2, 2), *([nn.BatchNorm1d(2)] if has_statistics else [])]
    replica = replicate(nn.Sequential(*layers), World(0, 2, torch.device("cpu")))
    assert isinstance(replica, DistributedDataParallel)
    assert replica.will_sync_module_buffers() == has_statistics
    (replica(torch.ones(3, 2)) ** 2).sum().backward()
    gradient = layers[0].weight.grad
    assert gradient is not None and gradient._is_view()  # of a bucket


def test_shares_must_fit_the_processes() -> None:
    run = RunConfig(parallel="fsdp", shard_processes=3)
    with pytest.raises(ValueError, match=r"run.shard_processes \(3\) must divide .* \(4\)"):
        spread(nn.Linear(2, 2), World(0, 4, torch.device("cpu")), run)
