"""Parts of a step, in milliseconds: the form in use, of losses eagerly, and alternatives."""

from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor, nn

from gpu_stages.formulas import plain_patch_loss, plain_ranking_loss
from gpu_stages.stage import Stage
from gpu_stages.step import frames_of
from gpu_stages.timing import kernel_seconds, medians, num_kernels
from hpm_video.bench.steps import build_student, grid_of, step_on
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.loader import clip_batches, to_clips
from hpm_video.method.losses import patch_loss, ranking_loss
from hpm_video.method.patch_kernel import PatchLoss
from hpm_video.method.ranking_kernel import RankingLoss
from hpm_video.method.teacher import Teacher, update_teacher
from hpm_video.models.ema import move_average
from hpm_video.models.parallel import clip_gradients
from hpm_video.models.tokens import patchify
from hpm_video.runtime import gpu_kernels
from hpm_video.runtime.distributed import World

Calls = dict[str, Callable[[], object]]


def run(stage: Stage) -> None:
    for what, calls_of in {
        "ranking loss": ranking,
        "patch loss": patches,
        "EMA": average,
        "patchify": patchifying,
        "device crops": crops,
        "gradient norm": clipping,
        "default step": kernels_of_ours,
    }.items():
        if not stage.has_time(what, seconds=1):
            continue
        with stage.measuring(what):
            compare(stage, what, calls_of(stage))


def compare(stage: Stage, what: str, calls: Calls) -> None:
    """Milliseconds of each call, and the kernels of the first, which is the form in use."""
    usable = {}
    for name, call in calls.items():
        try:
            call()
            usable[name] = call
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    seconds = medians(stage, usable)
    milliseconds = {name: 1000 * seconds[name] if name in seconds else None for name in calls}
    kernels = num_kernels(kernel_seconds(stage, next(iter(calls.values()))))
    stage.row(f"{what}, ms", **milliseconds, kernels=kernels)


def backward(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> Callable[[], object]:
    """A loss and its gradient."""
    leaf = leaf.requires_grad_()
    return lambda: torch.autograd.grad(loss(leaf).mean(), leaf)


def ranking(stage: Stage) -> Calls:
    predicted, measured = torch.rand(2, *stage.either((64, 1408), (4, 176)), device=stage.device)
    forms = {
        "ranking_loss": ranking_loss,
        "PyTorch alone": lambda *losses: RankingLoss.apply(*losses, False),
        "formula": plain_ranking_loss,
    }
    if stage.on_gpu:
        forms["compiled"] = torch.compile(plain_ranking_loss)
    return {
        name: backward(lambda leaf, form=form: form(leaf, measured), predicted)
        for name, form in forms.items()
    }


def patches(stage: Stage) -> Calls:
    batch, masked, tokens, values = stage.either((64, 1408, 1568, 1536), (4, 176, 196, 384))
    every = torch.rand(batch, tokens, values, device=stage.device)
    index = torch.rand(batch, tokens, device=stage.device).argsort(dim=1)[:, :masked]
    dtype = stage.either(torch.bfloat16, torch.float32)
    reconstruction = torch.randn(batch, masked, values, device=stage.device, dtype=dtype)
    forms = {
        "patch_loss": patch_loss,
        "PyTorch alone": lambda leaf, *, patches, index, normalize: PatchLoss.apply(
            leaf, patches, index, normalize
        ),
        "formula": plain_patch_loss,
    }
    if stage.on_gpu:
        forms["compiled"] = torch.compile(plain_patch_loss)
    given = {"patches": every, "index": index, "normalize": True}
    return {name: backward(partial(form, **given), reconstruction) for name, form in forms.items()}


def average(stage: Stage) -> Calls:
    with stage.device:
        student = build_student(stage.config(1))
    teacher = Teacher(student)
    skip = torch.zeros((), device=stage.device)
    source = dict(student.named_parameters())
    pairs = [(mine, source[name]) for name, mine in teacher.named_parameters()]
    return {
        "update_teacher": lambda: update_teacher(teacher, student, 0.999, skip=skip),
        "without skip": lambda: move_average(pairs, 0.999),
    }


def patchifying(stage: Stage) -> Calls:
    config = stage.config(stage.either(64, 2))
    data, grid = config.data, grid_of(config)
    shape = (data.batch_size, data.num_frames, data.crop_size, data.crop_size, 3)
    frames = torch.zeros(shape, dtype=torch.uint8, device=stage.device)
    return {
        "floats": lambda: patchify(to_clips(frames, stage.device), grid),
        "bytes": lambda: patchify(frames.permute(0, 4, 1, 2, 3), grid),
    }


def crops(stage: Stage) -> Calls:
    """Crops of a batch of whole frames that lie on the device, and copying these frames there."""
    manifest = read_manifest(stage.manifest(), labels=False)
    data = stage.crop_data("device", batch_size=min(stage.either(64, 2), len(manifest)))
    world = World(0, 1, torch.device("cpu"))
    (batch,) = clip_batches(
        manifest, data, accumulation=1, world=world, seed=0, start_step=0, num_steps=1
    )
    rows = batch.clips.pin_memory() if stage.on_gpu else batch.clips
    assert batch.frames is not None
    there = rows.to(stage.device)
    return {
        "crop": lambda: batch.frames.crop(rows, there),
        "one by one": lambda: batch.frames.crop(rows, there, together=False),
        "together": lambda: batch.frames.crop(rows, there, together=True),
        "copy": lambda: rows.to(stage.device, non_blocking=True),
    }


def clipping(stage: Stage) -> Calls:
    with stage.device:
        student = build_student(stage.config(1))
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)
    return {
        "clip_gradients": lambda: clip_gradients(student, None),
        "clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(student.parameters(), float("inf")),
    }


def kernels_of_ours(stage: Stage) -> Calls:
    """A whole step with our own kernels, and with PyTorch's alone."""
    config = stage.pair(stage.either(64, 2))["default"]
    step = step_on(config, frames_of(stage, config), stage.device)

    def without() -> None:
        with patch.object(gpu_kernels, "runs_triton", lambda device: False):
            step()

    return {"with our kernels": step, "without": without}
