"""Training steps as functions to be timed: ours for a config, and that of `transformers`."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from hpm_video.config import PretrainConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.loader import ClipBatch, clip_batches, to_bytes, to_clips
from hpm_video.data.samples.scores import scored_tubelet
from hpm_video.method.competence import competence_of, student_accuracy
from hpm_video.method.masking import planned_hard_ratio, random_mask
from hpm_video.method.step import PretrainStep, configured_step
from hpm_video.method.teacher import teacher_of, update_teacher
from hpm_video.models.build import HPM, build, token_grid
from hpm_video.models.compiling import compile_parts, is_compiled
from hpm_video.models.cuda_graphs import Replayed, choose_cuda_graphs
from hpm_video.models.parallel import clip_gradients, spread
from hpm_video.models.precision import autocast, choose_precision
from hpm_video.models.sizes import SIZES
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD
from hpm_video.runtime.distributed import World
from hpm_video.train.optim import pretrain_optimizer
from hpm_video.train.run.steps import BadSteps, step_unless
from hpm_video.train.step_videos import micro_batches
from hpm_video.weights.targets import load_target

# Phases of a step in order; "clip" includes the gradient norm and the check for bad steps
Phase = Literal["input", "forward", "backward", "clip", "optimizer", "ema"]


def config_step(
    config: PretrainConfig,
    clips: Callable[[], Tensor],
    world: World,
    student: HPM | None = None,
    enter: Callable[[Phase], None] = lambda phase: None,
) -> Callable[[], Tensor]:
    """A function that performs an optimizer step of pre-training, as halfway through a run.

    It returns the loss of its last micro-batch, a scalar, without synchronisation. ``clips``:
    returns the clips of a micro-batch on the device. ``student``: an existing model to train
    without wrapping it. ``enter``: called at the start of each phase.
    """
    precision, _ = choose_precision(config.run.precision, world)
    config = replace(config, run=replace(config.run, precision=precision))
    config, frozen = load_target(config, world.device)
    grid = grid_of(config)
    torch.manual_seed(0)
    model = student or build_student(config)
    called = student or spread(model, world, config.run)
    teacher = teacher_of(model, config)
    optimizer = pretrain_optimizer(model, config.optim)
    parts = {"student": model, "teacher": teacher, "target": frozen}
    compile_parts(parts, config.run, world, say=print)
    compute = configured_step(config, grid, frozen)
    generator = torch.Generator(world.device).manual_seed(0)
    hard_ratio = planned_hard_ratio(config.masking, 0.5)
    competence = competence_of(config.masking, world)
    accumulation = accumulation_of(config, world.size)
    bad_steps = BadSteps(world.device, max_in_a_row=config.run.max_bad_steps)
    # Scores that come with clips; their values do not affect the time
    size = config.data.videos_at_once * config.data.repeats, grid.num_tokens
    is_scored = scored_tubelet(config) is not None
    scores = torch.zeros(size, device=world.device) if is_scored else None

    def learn(batch: Tensor, *ratio: Tensor) -> PretrainStep:
        enter("forward")
        how = {"hard_ratio": ratio[0] if ratio else hard_ratio, "given": scores}
        result = compute(called, teacher, batch, generator=generator, **how)
        enter("backward")
        (result.loss / accumulation).backward()
        return result.detached()

    compiled = is_compiled(config.run, world.device)
    graphs, _ = choose_cuda_graphs(config.run.cuda_graphs, world, compiled=compiled)
    uses_graphs = graphs == "true"
    replayed = Replayed(learn, generator, capture=uses_graphs, say=print)

    def step() -> Tensor:
        losses: dict[str, Tensor] = {}
        on_device = () if competence is None else (competence.hard_ratio,)
        accuracies = []
        for _ in range(accumulation):
            enter("input")
            result = replayed(clips(), *on_device)
            if competence is not None:
                accuracies.append(student_accuracy(result))
            for name, value in result.losses.items():
                losses[name] = losses.get(name, 0) + value / accumulation
        enter("clip")
        norm = clip_gradients(model, config.optim.clip_grad)
        skip = bad_steps.judge(torch.stack([*losses.values(), norm]).sum())
        enter("optimizer")
        step_unless(skip, optimizer)
        if competence is not None:
            competence.follow(torch.stack(accuracies).mean(), skip=skip)
        optimizer.zero_grad(set_to_none=not uses_graphs)
        enter("ema")
        if teacher is not None:
            update_teacher(teacher, model, config.teacher.momentum_start, skip=skip)
        return result.loss

    return step


def step_on(
    config: PretrainConfig,
    frames: Tensor,
    device: torch.device | str = "cpu",
    student: HPM | None = None,
    enter: Callable[[Phase], None] = lambda phase: None,
) -> Callable[[], Tensor]:
    """`config_step` in one process that reuses the same frames (see `random_frames`)."""
    world = World(rank=0, size=1, device=torch.device(device))
    return config_step(config, lambda: to_bytes(frames, world.device), world, student, enter)


def random_frames(config: PretrainConfig, device: torch.device | str = "cpu") -> Tensor:
    """A micro-batch of frames (B, T, H, W, 3) uint8 on the host, the same at each call.

    For a GPU its memory is pinned, like the loader's.
    """
    data = config.data
    shape = (data.videos_at_once * data.repeats, data.num_frames, data.crop_size, data.crop_size, 3)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return frames.pin_memory() if torch.device(device).type == "cuda" else frames


def accumulation_of(config: PretrainConfig, num_processes: int = 1) -> int:
    """Micro-batches per optimizer step; raises ValueError if they cannot make the total batch."""
    at_once = config.data.videos_at_once
    return micro_batches(config.optim, batch_size=at_once, num_processes=num_processes)


def micro_batches_of(config: PretrainConfig, world: World, count: int) -> Iterator[ClipBatch]:
    """``count`` micro-batches of the config's videos, read by its loader workers."""
    data, seed = config.data, config.run.seed
    videos = read_manifest(data.manifest, root=data.root, labels=False)
    return clip_batches(
        videos,
        data,
        accumulation=1,
        world=world,
        seed=seed,
        start_step=0,
        num_steps=count,
        tubelet=scored_tubelet(config),
    )


def grid_of(config: PretrainConfig) -> TokenGrid:
    """The token grid of the config's clips."""
    data = config.data
    return token_grid(config.model, num_frames=data.num_frames, crop_size=data.crop_size)


def build_student(config: PretrainConfig) -> HPM:
    """The config's model, on the CPU or the current default device."""
    return build(config)


def transformers_step(
    config: PretrainConfig, frames: Tensor, device: torch.device | str = "cpu"
) -> tuple[Callable[[], Tensor], str]:
    """A step of plain VideoMAE in `transformers`, and the name of its attention.

    Raises ImportError if `transformers` is not installed.
    """
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    torch.manual_seed(0)
    place, size, grid = torch.device(device), SIZES[config.model.size], grid_of(config)
    model = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=config.data.crop_size,
            num_frames=config.data.num_frames,
            patch_size=config.model.patch_size,
            tubelet_size=config.model.tubelet_size,
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            intermediate_size=round(size.width * size.mlp_ratio),
            decoder_hidden_size=size.decoder_width,
            decoder_num_hidden_layers=config.model.decoder_depth,
            decoder_num_attention_heads=size.decoder_heads,
            decoder_intermediate_size=round(size.decoder_width * size.mlp_ratio),
            layer_norm_eps=1e-6,
            attn_implementation="sdpa",  # type: ignore[call-arg]  # all configs accept it
        )
    )
    nn.Module.to(model, place).train()
    optimizer = pretrain_optimizer(model, config.optim)
    attention = str(model.config._attn_implementation)
    if is_compiled(config.run, place):
        model.compile()
    generator = torch.Generator(place).manual_seed(0)
    statistics = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=place)
    mean, std = statistics[:, :, None, None]

    def step() -> Tensor:
        # The work of its processor: (B, T, C, H, W), normalised
        clips = to_clips(frames, place).transpose(1, 2)
        mask = random_mask(
            len(clips),
            grid,
            mask_ratio=config.masking.mask_ratio,
            tube_length=grid.time,
            generator=generator,
            device=place,
        )
        with autocast(place, config.run.precision):
            loss: Tensor = model((clips - mean) / std, bool_masked_pos=mask).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, attention
