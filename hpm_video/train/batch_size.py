"""Micro-batches by memory: ``data.batch_size=auto``.

How a step's videos are divided does not change what is computed (stochastic depth and the
statistics of batch norms excepted). Large micro-batches keep a GPU busy; so the largest is taken
whose memory, counted on tensors without contents, the GPU has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.data.samples.scores import scored_tubelet
from hpm_video.method.masking import planned_hard_ratio
from hpm_video.method.step import configured_step
from hpm_video.method.targets import FrozenModel
from hpm_video.method.teacher import teacher_of
from hpm_video.models.adapters import train_less
from hpm_video.models.build import build, token_grid
from hpm_video.models.hpm import HPM
from hpm_video.models.precision import autocast
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import Block
from hpm_video.runtime.distributed import World, gather_objects
from hpm_video.train.gpu_forms import fake_tensors
from hpm_video.train.live_bytes import LiveBytes

Config = TypeVar("Config", PretrainConfig, FinetuneConfig)

MOST_ON_CPU = 8  # videos; larger micro-batches are no faster there
_MOST_CLIPS = 256  # more make no kernel faster, but need as much more of the host's memory
_COUNTED = (64, 128)  # clips of micro-batches from which the memory of others follows
# Of what is free on a GPU, for what is not counted: CUDA's own, workspaces, fragments
_RESERVE_BYTES, _USABLE = 2e9, 0.9
_STATE_BYTES = 4 + 8  # of a parameter: itself and two moments
_GRADIENT_BYTES = 4


class BatchChoice(NamedTuple):
    """Videos per process and micro-batch, and why, in words; None: it was asked for."""

    size: int
    why: str | None


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step by the clips of a micro-batch: fixed + clips * per_clip."""

    fixed: float
    per_clip: float

    def most_clips(self, num_bytes: float) -> int:
        """So many clips have room in so many bytes."""
        return max(0, int((num_bytes - self.fixed) / self.per_clip))


def choose_batch_size(
    config: PretrainConfig | FinetuneConfig,
    world: World,
    *,
    kept: int | str | None = None,
    num_classes: int = 0,
    free_bytes: float | None = None,
) -> BatchChoice:
    """What data.batch_size means; every rank calls, and gets the same.

    ``auto`` is what the checkpoint of a run has, if it continues one (``kept``) and its ranks can
    still share a step so. Else it is the largest part of a rank's share of optim.total_batch that
    has room on the fullest GPU (``free_bytes``: in so much instead), on CPUs `MOST_ON_CPU` at most.
    Raises ValueError for a total batch that the ranks cannot share.
    """
    if config.data.batch_size != "auto":
        return BatchChoice(config.data.videos_at_once, None)
    total = config.optim.total_batch
    assert total is not None, "the settings refuse it"
    unit = 2 if isinstance(config, FinetuneConfig) and config.mixing.is_on else 1  # pairs are mixed
    if total % (unit * world.size):
        pairs = " pairs of" if unit == 2 else ""
        raise ValueError(
            f"optim.total_batch ({total}) must be a multiple of {unit * world.size}, so that "
            f"{world.size} processes get as many{pairs} videos each"
        )
    share = total // world.size
    sizes = [size for size in range(unit, share + 1, unit) if share % size == 0]
    if kept in sizes:
        return BatchChoice(int(kept), "as before")
    if world.device.type != "cuda" and free_bytes is None:
        return BatchChoice(max(s for s in sizes if s <= max(MOST_ON_CPU, unit)), "on a CPU")
    mine = None
    if world.is_main:  # the others have the same model
        memory = step_memory(config, num_ranks=world.size, num_classes=num_classes)
        mine = memory.fixed, memory.per_clip
    free = torch.cuda.mem_get_info(world.device)[0] if free_bytes is None else free_bytes
    found = gather_objects((mine, free), world)
    memory, free = StepMemory(*found[0][0]), min(free for _, free in found)
    usable = free * _USABLE - _RESERVE_BYTES
    most_videos = min(memory.most_clips(usable), _MOST_CLIPS) // config.data.repeats
    size = max((s for s in sizes if s <= most_videos), default=sizes[0])
    needed = memory.fixed + size * config.data.repeats * memory.per_clip
    about = f"about {needed / 1e9:.1f} of {free / 1e9:.1f} GB of GPU memory"
    if size > most_videos:
        about += ": it may be too little (run.activation_checkpointing=true needs less)"
    return BatchChoice(size, about)


def with_batch_size(config: Config, world: World) -> Config:
    """The config with a number of videos for ``auto``, as a new run would choose it."""
    size = choose_batch_size(config, world).size
    return replace(config, data=replace(config.data, batch_size=size))


def step_memory(
    config: PretrainConfig | FinetuneConfig, *, num_ranks: int = 1, num_classes: int = 0
) -> StepMemory:
    """Memory of a config's steps on CUDA, run eagerly, by counting tensors without contents.

    Micro-batches wait on the device too: one ahead, one that is worked on.
    """
    frames = config.data.num_frames * config.data.crop_size**2 * 3
    model, *more = _models(config, num_classes)
    sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
    trained = sum(size for size, learns in sizes if learns)
    others = [size for size, learns in sizes if not learns]
    others += [each.numel() for other in more for each in other.parameters()]
    shares = 1
    if config.run.parallel == "fsdp":
        shares = config.run.shard_processes or num_ranks
    state = (_STATE_BYTES * trained + 4 * sum(others)) / shares
    with torch.random.fork_rng(devices=[]):
        low, high = (_counted_bytes(config, clips, num_classes=num_classes) for clips in _COUNTED)
    per_clip = (high - low) / (_COUNTED[1] - _COUNTED[0])
    passes, gradients = low - _COUNTED[0] * per_clip, _GRADIENT_BYTES * trained
    if config.run.cuda_graphs == "true":  # which keep gradients, and a micro-batch of their own
        return StepMemory(state + passes + gradients, per_clip + 3 * frames)
    # Early in the backward pass, when most is kept, few gradients are there; at its end all
    return StepMemory(state + max(passes, gradients), per_clip + 2 * frames)


def _models(config: PretrainConfig | FinetuneConfig, num_classes: int) -> Sequence[nn.Module]:
    """What a run of a config trains, and its teacher or average, without contents."""
    with torch.device("meta"):
        if isinstance(config, PretrainConfig):
            student = build(config)
            return [each for each in (student, teacher_of(student, config)) if each is not None]
        classifier = build(config, num_classes=num_classes)
        train_less(classifier, config.model)
        made = [classifier]
        return made * (1 if config.optim.ema_momentum is None else 2)


def _counted_bytes(
    config: PretrainConfig | FinetuneConfig, num_clips: int, *, num_classes: int
) -> int:
    """Most bytes alive in the forward and backward pass of a micro-batch beside the weights: clips,
    what is kept for the backward pass, and gradients."""
    data, live = config.data, LiveBytes()
    models = _models(config, num_classes)
    for block in (part for model in models for part in model.modules() if isinstance(part, Block)):
        block.recompute = config.run.activation_checkpointing
    with fake_tensors(as_on_gpu=True):
        for model in models:
            model.to_empty(device="cpu")
        with live:
            shape = (num_clips, data.num_frames, data.crop_size, data.crop_size, 3)
            clips = torch.empty(shape, dtype=torch.uint8).permute(0, 4, 1, 2, 3)
            for weight in models[0].parameters():
                live.count(weight)
            weights = live.live
            _loss(config, models, clips).backward()
    return live.peak - weights


def _loss(
    config: PretrainConfig | FinetuneConfig, models: Sequence[nn.Module], clips: Tensor
) -> Tensor:
    """What a micro-batch (B, 3, T, S, S) uint8 minimises."""
    precision = "bfloat16" if config.run.precision == "auto" else config.run.precision
    if isinstance(config, FinetuneConfig):
        with autocast(clips.device, precision):
            logits: Tensor = models[0](clips.float().div_(255))
        return logits.float().square().mean()
    data = config.data
    grid = token_grid(config.model, num_frames=data.num_frames, crop_size=data.crop_size)
    student, *teacher = models
    assert isinstance(student, HPM)
    scores = None  # that come with clips
    if scored_tubelet(config) is not None:
        scores = torch.zeros(len(clips), grid.num_tokens, device=clips.device)
    result = configured_step(config, grid, _stand_in(config, grid))(
        student,
        teacher[0] if teacher else None,
        clips,
        hard_ratio=planned_hard_ratio(config.masking, 1.0),
        given=scores,
        generator=torch.Generator().manual_seed(0),
        precision=precision,
    )
    return result.loss


def _stand_in(config: PretrainConfig, grid: TokenGrid) -> FrozenModel | None:
    """What gives features in the place of a frozen model, which keeps nothing for the backward
    pass. Its weights are on the GPU by now, so that they are no part of what is free."""
    loss = config.loss
    if loss.target != "frozen":
        return None
    width = len(loss.target_layers) * (loss.target_width or 0)
    return lambda clips: torch.empty(len(clips), grid.num_tokens, width)


def kept_batch_size(state: Mapping[str, Any] | None) -> int | str | None:
    """That of the checkpoint which a run continues."""
    return state["config"]["data"].get("batch_size") if state else None
