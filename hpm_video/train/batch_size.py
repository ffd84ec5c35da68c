"""``data.batch_size=auto``: the largest micro-batch that fits into GPU memory.

How a step is divided does not change its result (except for stochastic depth and batch norm
statistics), and large micro-batches keep a GPU busy. Memory is counted on fake tensors.
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
from hpm_video.train.step_videos import check_shares

Config = TypeVar("Config", PretrainConfig, FinetuneConfig)

MOST_ON_CPU = 8  # videos; larger micro-batches are no faster on a CPU
_MOST_CLIPS = 256  # more clips speed up no kernel but need more host memory
_COUNTED = (64, 128)  # micro-batches (clips) whose memory is counted; others are extrapolated
# Left free on a GPU for what is not counted: the CUDA context, workspaces, fragmentation
_RESERVE_BYTES, _USABLE = 2e9, 0.9
_STATE_BYTES = 4 + 8  # per parameter: the value and two moments
_GRADIENT_BYTES = 4


class BatchChoice(NamedTuple):
    """size: videos per rank and micro-batch. why: the reason, in words; None if requested."""

    size: int
    why: str | None


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step as a function of clips per micro-batch: fixed + clips * per_clip."""

    fixed: float
    per_clip: float

    def most_clips(self, num_bytes: float) -> int:
        """Largest number of clips that fits into this number of bytes."""
        return max(0, int((num_bytes - self.fixed) / self.per_clip))


def choose_batch_size(
    config: PretrainConfig | FinetuneConfig,
    world: World,
    *,
    kept: int | str | None = None,
    num_classes: int = 0,
    free_bytes: float | None = None,
) -> BatchChoice:
    """Resolve data.batch_size; all ranks call and get the same answer.

    ``auto`` becomes the value of the checkpoint that a run continues (``kept``), if it still
    divides a step. Otherwise it is the largest divisor of a rank's share of optim.total_batch that
    fits on the fullest GPU (or into ``free_bytes``), at most `MOST_ON_CPU` on CPUs. Raises
    ValueError if the ranks cannot share the total batch evenly.
    """
    if config.data.batch_size != "auto":
        return BatchChoice(config.data.videos_at_once, None)
    total = config.optim.total_batch
    assert total is not None, "the settings refuse it"
    unit = check_shares(config, world.size)
    share = total // world.size
    sizes = [size for size in range(unit, share + 1, unit) if share % size == 0]
    if kept in sizes:
        return BatchChoice(int(kept), "as before")
    if world.device.type != "cuda" and free_bytes is None:
        return BatchChoice(max(s for s in sizes if s <= max(MOST_ON_CPU, unit)), "on a CPU")
    mine = None
    if world.is_main:  # all ranks have the same model
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
        about += ", which may not fit; run.activation_checkpointing=true needs less"
    return BatchChoice(size, about)


def with_batch_size(config: Config, world: World) -> Config:
    """The config with data.batch_size resolved as for a new run."""
    size = choose_batch_size(config, world).size
    return replace(config, data=replace(config.data, batch_size=size))


def step_memory(
    config: PretrainConfig | FinetuneConfig, *, num_ranks: int = 1, num_classes: int = 0
) -> StepMemory:
    """Memory of a training step on CUDA in eager mode, counted on fake tensors.

    It includes two micro-batches on the device: the current one and the next.
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
    if config.run.cuda_graphs == "true":  # graphs keep gradients and their own micro-batch
        return StepMemory(state + passes + gradients, per_clip + 3 * frames)
    # Activations peak early in the backward pass, gradients at its end
    return StepMemory(state + max(passes, gradients), per_clip + 2 * frames)


def _models(config: PretrainConfig | FinetuneConfig, num_classes: int) -> Sequence[nn.Module]:
    """The trained model, and its teacher or average, on the meta device."""
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
    """Peak bytes of a micro-batch's forward and backward pass, without the weights: clips,
    activations and gradients."""
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
    """Loss of a micro-batch (B, 3, T, S, S) uint8."""
    precision = "bfloat16" if config.run.precision == "auto" else config.run.precision
    if isinstance(config, FinetuneConfig):
        with autocast(clips.device, precision):
            logits: Tensor = models[0](clips.float().div_(255))
        return logits.float().square().mean()
    data = config.data
    grid = token_grid(config.model, num_frames=data.num_frames, crop_size=data.crop_size)
    student, *teacher = models
    assert isinstance(student, HPM)
    scores = None  # given with the clips
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
    """A stand-in for a frozen target model, which keeps no activations. Its weights are on the GPU
    already, so they do not count as free memory."""
    loss = config.loss
    if loss.target != "frozen":
        return None
    width = len(loss.target_layers) * (loss.target_width or 0)
    return lambda clips: torch.empty(len(clips), grid.num_tokens, width)


def kept_batch_size(state: Mapping[str, Any] | None) -> int | str | None:
    """data.batch_size in the checkpoint that a run continues."""
    return state["config"]["data"].get("batch_size") if state else None
