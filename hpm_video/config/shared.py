"""Settings that pre-training and fine-tuning have in common."""

import math
from dataclasses import dataclass

from hpm_video.config import values
from hpm_video.config.limits import all_at_least, between
from hpm_video.config.schema import setting

MOST_FPS = 1000
MOST_WEIGHT = 1000  # of a list


@dataclass(frozen=True)
class RunConfig:
    output_dir: str | None = setting(
        None, "the run folder; the same command continues what lies there"
    )
    seed: int = setting(0, "of weights, order, crops and masks")
    device: values.Device = setting("auto", "auto: CUDA where there is one")
    precision: values.Precision = setting(
        "auto",
        "of the forward pass; auto: bfloat16 where the device has units for it, else float16 on "
        "GPUs and float32 on CPUs",
    )
    deterministic: bool = setting(
        False, "only algorithms that repeat bit by bit, on GPUs too; slower"
    )
    compile: values.Switch = setting(
        "auto", "torch.compile of student and teacher, or classifier; auto: on CUDA"
    )
    cuda_graphs: values.Switch = setting(
        "auto",
        "the GPU repeats steps without the host; auto: in one process on CUDA, if not compiled",
    )
    parallel: values.Parallel = setting("ddp", "each process has the whole model, or a share of it")
    shard_processes: int | None = setting(None, "fsdp: processes that share one copy; default: all")
    activation_checkpointing: bool = setting(
        False, "run blocks twice, to keep less for the backward pass"
    )
    log_every: int = setting(20, "steps from one record to the next")
    checkpoint_every_minutes: float = setting(20.0, "also at the end and before stopping")
    keep_checkpoints: int = setting(2, "the newest so many are kept; 0 keeps all")
    save_in_background: bool = setting(
        True, "copy a checkpoint to host memory, write it beside training"
    )
    resume: str | None = setting(None, "checkpoint to go on from when the run folder has none")
    max_bad_steps: int = setting(10, "so many steps in a row that are not finite stop the run")
    collective_timeout_s: float = setting(
        600.0, "longer than this no process waits for another one"
    )
    loggers: list[str] = setting(
        ["tensorboard"],
        "of tensorboard, wandb and mlflow, beside metrics.jsonl; all offline by default",
    )
    profile_steps: int = setting(
        0, "so many steps of every start are traced into profile/; 0 = none"
    )

    def __post_init__(self) -> None:
        all_at_least(
            "run.", self, log_every=1, checkpoint_every_minutes=0, keep_checkpoints=0,
            max_bad_steps=1, shard_processes=1, collective_timeout_s=1, profile_steps=0,
        )  # fmt: skip
        between("run.seed", self.seed, 0, 2**63 - 1)
        known = values.values_of(values.Logger)
        for name in self.loggers:
            if name not in known:
                raise ValueError(f"run.loggers ({name}) must be of {', '.join(known)}")
        if len(set(self.loggers)) < len(self.loggers):
            raise ValueError(f"run.loggers ({', '.join(self.loggers)}) must name each logger once")


@dataclass(frozen=True)
class DataConfig:
    manifest: list[str] = setting([], "one or several lists, joined")
    weights: list[float] = setting(
        [], "how often an epoch shows the videos of each list of manifest; default: once"
    )
    root: str | None = setting(None, "where relative paths start; default: each list's own folder")
    num_frames: int = setting(16, "frames of a clip")
    fps: float | None = setting(
        None, "see videos at so many frames a second, by their own times; null: all frames"
    )
    frame_stride: int = setting(2, "frames from one frame of a dense clip to the next")
    sampling: values.Sampling = setting(
        "dense", "one window, or a frame of each segment; videomae_...: the published rules"
    )
    crop: values.Crop = setting("multi_scale", "kind of random crop")
    crop_size: int = setting(224, "side of a clip in pixels")
    antialias: bool = setting(
        True,
        "resizing averages all pixels that shrink into one; false: only the nearest ones, and the "
        "longer side of test views is rounded down, as in VideoMAE's fine-tuning",
    )
    crop_on: values.CropOn = setting("workers", "device: workers only decode")
    frame_pixels: int = setting(
        116_736, "of a frame on its way to the device (256 x 456); larger: scaled"
    )
    flip: bool = setting(False, "mirror half of the clips; never where direction is meaning")
    repeats: int = setting(1, "crops taken of each decoded video")
    windows: int = setting(1, "windows in time that these crops are taken from, in turns")
    batch_size: int | str = setting(
        32,
        "videos per process and micro-batch; auto: of optim.total_batch what a GPU has memory for",
    )
    num_workers: int = setting(8, "decoding processes per training process; 0: it decodes itself")
    decoder: values.Decoder = setting("decord", "PyAV where it reads a file wrong")
    decode_timeout_s: float | None = setting(60.0, "a video that takes longer is bad; 0: no limit")
    max_bad_fraction: float = setting(0.05, "more unreadable videos than this share stop the run")
    max_damage: float = setting(
        1.0, "leave out videos with a larger share of damaged frames, as data check counted them"
    )

    def __post_init__(self) -> None:
        all_at_least(
            "data.", self, num_frames=1, frame_stride=1, crop_size=1, repeats=1, frame_pixels=1,
            num_workers=0, decode_timeout_s=0,
        )  # fmt: skip
        if self.weights and len(self.weights) != len(self.manifest):
            raise ValueError(
                f"data.weights ({len(self.weights)} numbers) must have one for each list of "
                f"data.manifest, which has {len(self.manifest)}"
            )
        for weight in self.weights:
            if not 0 < weight <= MOST_WEIGHT:
                raise ValueError(
                    f"data.weights ({weight:g}) must be above 0, and at most {MOST_WEIGHT}: to "
                    "show none of a list, leave it out of data.manifest"
                )
        if self.batch_size != "auto" and not (
            isinstance(self.batch_size, int) and self.batch_size >= 1
        ):
            raise ValueError(
                f"data.batch_size ({self.batch_size}) must be a whole number of at least 1, or auto"
            )
        if self.fps is not None and not (math.isfinite(self.fps) and 0 < self.fps <= MOST_FPS):
            raise ValueError(f"data.fps ({self.fps}) must be above 0, and at most {MOST_FPS}")
        if self.fps is not None and self.frame_stride > 1 and not self.takes_segments:
            raise ValueError(
                f"data.frame_stride ({self.frame_stride}) must be 1 with data.fps ({self.fps:g}), "
                "which says how far apart the frames of a clip are: add data.frame_stride=1"
            )
        if self.windows < 1 or self.repeats % self.windows:
            raise ValueError(
                f"data.windows ({self.windows}) must be at least 1 and divide data.repeats "
                f"({self.repeats})"
            )
        between("data.max_bad_fraction", self.max_bad_fraction, 0, 1)
        between("data.max_damage", self.max_damage, 0, 1)

    @property
    def takes_segments(self) -> bool:
        """Whether a clip has a frame of each segment of the whole video, and no stride."""
        return self.sampling in ("uniform", "videomae_ssv2")

    @property
    def frames_in_words(self) -> str:
        """Which frames of a video make a clip."""
        stride = "" if self.takes_segments else f" stride {self.frame_stride}"
        return f"{self.sampling}{stride}{'' if self.fps is None else f' at {self.fps:g} fps'}"

    @property
    def videos_at_once(self) -> int:
        """``batch_size`` of a run under way, for which ``auto`` has become a number."""
        assert isinstance(self.batch_size, int), "choose_for_machine comes first"
        return self.batch_size


@dataclass(frozen=True)
class LabelsConfig:
    """How a list says that videos have several labels; by default each has one."""

    separator: str | None = setting(
        None, "several labels per video: what stands between them in a cell; null: one label"
    )
    columns: list[str] = setting(
        [], "several labels per video: the columns of 0 and 1, one per class; * matches any text"
    )

    def __post_init__(self) -> None:
        text = self.separator
        if text is not None and (not text or any(c.isalnum() or c in "\"'-+" for c in text)):
            raise ValueError(
                f"labels.separator ({text!r}) must be one or more characters that are no letter, "
                "digit, quote or sign, such as ;"
            )
        if text is not None and self.columns:
            raise ValueError(
                f"labels.columns ({', '.join(self.columns)}) must be left out with labels.separator"
                f" ({text!r}): labels are in one cell, or in a column per class"
            )

    @property
    def are_several(self) -> bool:
        """Whether a video may have any number of labels."""
        return self.separator is not None or bool(self.columns)


@dataclass(frozen=True)
class EncoderConfig:
    size: values.Size = setting("base", "VideoMAE's; huge_v2 and giant are VideoMAE V2's")
    width: int | None = setting(None, "numbers per token; of `size` unless given")
    depth: int | None = setting(None, "blocks; of `size` unless given")
    heads: int | None = setting(None, "attention heads; of `size` unless given")
    patch_size: int = setting(16, "side of a token in pixels")
    tubelet_size: int = setting(2, "frames of a token")
    positions: values.Positions = setting("sinusoid", "stored: a table beside the weights")
    init: str | None = setting(None, "file of weights, ours or of others, to start from")
    allow_missing: list[str] = setting([], "names that init may lack, * is any")

    def __post_init__(self) -> None:
        all_at_least("model.", self, width=1, depth=1, heads=1, patch_size=1, tubelet_size=1)


@dataclass(frozen=True)
class OptimConfig:
    epochs: int = setting(800, "passes over the videos")
    base_lr: float = setting(1.5e-4, "lr = base_lr * videos per optimizer step / 256")
    min_lr: float = setting(1e-5, "where the cosine ends")
    warmup_lr: float = setting(1e-6, "where warm-up starts")
    warmup_epochs: int | str = setting(
        "auto",
        "epochs of linear warm-up; auto: epochs / 20, at most 40; in fine-tuning epochs / 4, at "
        "most 5",
    )
    weight_decay: float = setting(0.05, "none on biases and norms")
    betas: tuple[float, float] = setting((0.9, 0.95), "of AdamW")
    clip_grad: float | None = setting(None, "largest gradient norm")
    accumulation: int = setting(1, "micro-batches per optimizer step")
    total_batch: int | None = setting(
        None, "videos per optimizer step, from which accumulation follows"
    )
    count_repeats: bool = setting(False, "whether repeats count as videos in the lr rule")

    def __post_init__(self) -> None:
        all_at_least("optim.", self, epochs=1, accumulation=1, total_batch=1)
        if self.total_batch is not None and self.accumulation != 1:
            raise ValueError(
                f"optim.accumulation ({self.accumulation}) must be left out where "
                f"optim.total_batch ({self.total_batch}) is given: it follows from that"
            )
        all_at_least("optim.", self, base_lr=0, min_lr=0, warmup_lr=0, weight_decay=0)
        if self.min_lr > self.base_lr:
            raise ValueError(
                f"optim.min_lr ({self.min_lr}) must be at most optim.base_lr ({self.base_lr})"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas ({list(self.betas)}) must be in [0, 1)")
        warmup = self.warmup_epochs
        if warmup != "auto" and not (isinstance(warmup, int) and 0 <= warmup < self.epochs):
            raise ValueError(
                f"optim.warmup_epochs ({warmup}) must be auto, or a whole number in [0, "
                f"optim.epochs ({self.epochs}))"
            )
        if self.clip_grad is not None and not 0 < self.clip_grad < math.inf:
            raise ValueError(f"optim.clip_grad ({self.clip_grad}) must be a number above 0")

    @property
    def warmup(self) -> int:
        """Epochs of warm-up."""
        return self._warmup if isinstance(self.warmup_epochs, str) else self.warmup_epochs

    @property
    def _warmup(self) -> int:
        """Where ``auto`` decides: that of the published 800 epochs, 40, or as large a share."""
        return min(40, self.epochs // 20)


def check_batch(data: DataConfig, optim: OptimConfig) -> None:
    """Raise ValueError for a batch of automatic size of which there is no whole to be a part of."""
    if data.batch_size == "auto" and optim.total_batch is None:
        raise ValueError(
            "optim.total_batch (null) must be given while data.batch_size is auto: it is divided "
            "into micro-batches"
        )
