"""Settings shared by pre-training and fine-tuning."""

import math
from dataclasses import dataclass

from hpm_video.config import values
from hpm_video.config.limits import all_at_least, between
from hpm_video.config.schema import setting

MOST_FPS = 1000
MOST_WEIGHT = 1000  # of a list in a mixture


@dataclass(frozen=True)
class RunConfig:
    output_dir: str | None = setting(
        None, "run folder; the same command continues a run that lies there"
    )
    seed: int = setting(0, "seed of weights, order, crops and masks")
    device: values.Device = setting("auto", "device to compute on; auto: CUDA if available")
    precision: values.Precision = setting(
        "auto",
        "precision of the forward pass; auto: bfloat16 if the device has units for it, else "
        "float16 on GPUs and float32 on CPUs",
    )
    deterministic: bool = setting(
        False, "use only algorithms that repeat bit for bit, on GPUs too; slower"
    )
    compile: values.Switch = setting(
        "auto", "torch.compile for student and teacher, or for the classifier; auto: on CUDA"
    )
    cuda_graphs: values.Switch = setting(
        "auto",
        "replay steps as CUDA graphs, without the host; auto: on CUDA, in one process, if not "
        "compiled",
    )
    parallel: values.Parallel = setting(
        "ddp", "ddp: each rank has the whole model; fsdp: ranks share one"
    )
    shard_processes: int | None = setting(
        None, "number of ranks that share one copy of the model with fsdp; null: all"
    )
    activation_checkpointing: bool = setting(
        False, "recompute blocks in the backward pass, to save memory"
    )
    log_every: int = setting(20, "steps between log records")
    checkpoint_every_minutes: float = setting(
        20.0, "minutes between checkpoints; a run also saves one at its end and before it stops"
    )
    keep_checkpoints: int = setting(2, "number of newest checkpoints to keep; 0: all")
    save_in_background: bool = setting(
        True, "copy a checkpoint to host memory and write it while training goes on"
    )
    resume: str | None = setting(None, "checkpoint to continue from if the run folder has none")
    max_bad_steps: int = setting(
        10, "consecutive steps with non-finite numbers after which the run stops"
    )
    collective_timeout_s: float = setting(
        600.0, "seconds a rank waits for the others before it fails"
    )
    loggers: list[str] = setting(
        ["tensorboard"],
        "loggers besides metrics.jsonl: tensorboard, wandb, mlflow; all offline by default",
    )
    profile_steps: int = setting(0, "steps to trace into profile/ after every start; 0: none")

    def __post_init__(self) -> None:
        all_at_least(
            "run.", self, log_every=1, checkpoint_every_minutes=0, keep_checkpoints=0,
            max_bad_steps=1, shard_processes=1, collective_timeout_s=1, profile_steps=0,
        )  # fmt: skip
        between("run.seed", self.seed, 0, 2**63 - 1)
        known = values.values_of(values.Logger)
        for name in self.loggers:
            if name not in known:
                raise ValueError(f"run.loggers ({name}) must be one of {', '.join(known)}")
        if len(set(self.loggers)) < len(self.loggers):
            raise ValueError(f"run.loggers ({', '.join(self.loggers)}) must name each logger once")


@dataclass(frozen=True)
class DataConfig:
    manifest: list[str] = setting([], "list of videos, or several lists to join")
    weights: list[float] = setting(
        [], "times that an epoch shows the videos of each list in data.manifest; []: once"
    )
    root: str | None = setting(
        None, "folder where relative paths start; null: the folder of each list"
    )
    num_frames: int = setting(16, "frames per clip")
    fps: float | None = setting(
        None, "frames per second at which to sample videos, by their timestamps; null: every frame"
    )
    frame_stride: int = setting(
        2,
        "step in frames between the frames of a clip; unused if sampling takes a frame per segment",
    )
    sampling: values.Sampling = setting(
        "dense",
        "which frames make a clip; dense: one window; uniform: a frame per segment of the "
        "video; videomae_...: the published rules",
    )
    crop: values.Crop = setting("multi_scale", "kind of random crop")
    crop_size: int = setting(224, "height and width of a clip in pixels")
    antialias: bool = setting(
        True,
        "resize with antialiasing; false: without, and round the longer side of test views "
        "down, as VideoMAE's fine-tuning does",
    )
    crop_on: values.CropOn = setting("workers", "where to crop; device: workers only decode")
    frame_pixels: int = setting(
        116_736,
        "largest frame that workers send with crop_on=device, in pixels (256 x 456); larger "
        "frames are scaled down",
    )
    flip: bool = setting(
        False, "mirror half of the clips; leave off if classes depend on direction"
    )
    repeats: int = setting(1, "crops per decoded video")
    windows: int = setting(
        1, "windows in time per decoded video, from which its crops are taken in turns"
    )
    batch_size: int | str = setting(
        32,
        "videos per rank and micro-batch; auto: as much of optim.total_batch as fits into a GPU",
    )
    num_workers: int = setting(8, "decoding processes per rank; 0: the rank decodes itself")
    decoder: values.Decoder = setting(
        "decord", "library that decodes videos; PyAV decodes the files that it would misread"
    )
    decode_timeout_s: float | None = setting(
        60.0, "seconds to decode a video before it counts as unreadable; 0: no limit"
    )
    max_bad_fraction: float = setting(
        0.05, "largest share of unreadable videos; above it the run stops"
    )
    max_damage: float = setting(
        1.0,
        "largest share of damaged frames, as counted by data check; videos above it are left out",
    )

    def __post_init__(self) -> None:
        all_at_least(
            "data.", self, num_frames=1, frame_stride=1, crop_size=1, repeats=1, frame_pixels=1,
            num_workers=0, decode_timeout_s=0,
        )  # fmt: skip
        if self.weights and len(self.weights) != len(self.manifest):
            raise ValueError(
                f"data.weights ({len(self.weights)} numbers) must have one number per list "
                f"in data.manifest, which has {len(self.manifest)}"
            )
        for weight in self.weights:
            if not 0 < weight <= MOST_WEIGHT:
                raise ValueError(
                    f"data.weights ({weight:g}) must be above 0, and at most {MOST_WEIGHT}: to "
                    "skip a list, remove it from data.manifest"
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
                "which already spaces the frames of a clip: add data.frame_stride=1"
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
        """True if a clip takes one frame from each segment of the video, without a stride."""
        return self.sampling in ("uniform", "videomae_ssv2")

    @property
    def frames_in_words(self) -> str:
        """How the frames of a clip are sampled, in words."""
        stride = "" if self.takes_segments else f" stride {self.frame_stride}"
        return f"{self.sampling}{stride}{'' if self.fps is None else f' at {self.fps:g} fps'}"

    @property
    def videos_at_once(self) -> int:
        """``batch_size`` of a run under way, where ``auto`` is already a number."""
        assert isinstance(self.batch_size, int), "choose_for_machine comes first"
        return self.batch_size


@dataclass(frozen=True)
class LabelsConfig:
    """Format of multi-label lists; by default every video has one label."""

    separator: str | None = setting(
        None, "text between the labels in a cell, for several labels per video; null: one label"
    )
    columns: list[str] = setting(
        [], "columns of 0 and 1, one per class, for several labels per video; * matches any text"
    )

    def __post_init__(self) -> None:
        text = self.separator
        if text is not None and (not text or any(c.isalnum() or c in "\"'-+" for c in text)):
            raise ValueError(
                f"labels.separator ({text!r}) must be one or more characters other than "
                "letters, digits, quotes, + and -, such as ;"
            )
        if text is not None and self.columns:
            raise ValueError(
                f"labels.columns ({', '.join(self.columns)}) must be left out with labels.separator"
                f" ({text!r}): labels are either in one cell or in a column per class"
            )

    @property
    def are_several(self) -> bool:
        """True if a video may have any number of labels."""
        return self.separator is not None or bool(self.columns)


@dataclass(frozen=True)
class EncoderConfig:
    size: values.Size = setting(
        "base", "size of the model, as in VideoMAE; huge_v2 and giant: as in VideoMAE V2"
    )
    width: int | None = setting(None, "numbers per token in the encoder; null: from model.size")
    depth: int | None = setting(None, "blocks of the encoder; null: from model.size")
    heads: int | None = setting(None, "attention heads of the encoder; null: from model.size")
    patch_size: int = setting(16, "height and width of a token in pixels")
    tubelet_size: int = setting(2, "frames per token")
    positions: values.Positions = setting(
        "sinusoid", "position embeddings; stored: a table that is saved with the weights"
    )
    init: str | None = setting(None, "file of weights to start from, ours or another project's")
    allow_missing: list[str] = setting(
        [], "names of tensors that model.init may lack; * matches any text"
    )

    def __post_init__(self) -> None:
        all_at_least("model.", self, width=1, depth=1, heads=1, patch_size=1, tubelet_size=1)


@dataclass(frozen=True)
class OptimConfig:
    epochs: int = setting(800, "passes over the videos")
    base_lr: float = setting(
        1.5e-4, "base learning rate: lr = base_lr * videos per optimizer step / 256"
    )
    min_lr: float = setting(1e-5, "base learning rate at the end of the cosine schedule")
    warmup_lr: float = setting(1e-6, "base learning rate at the start of warm-up")
    warmup_epochs: int | str = setting(
        "auto",
        "epochs of linear warm-up; auto: epochs / 20, at most 40; in fine-tuning epochs / 4, "
        "at most 5",
    )
    weight_decay: float = setting(0.05, "weight decay of AdamW; biases and norms have none")
    betas: tuple[float, float] = setting((0.9, 0.95), "betas of AdamW")
    clip_grad: float | None = setting(None, "largest gradient norm; null: no clipping")
    accumulation: int = setting(1, "micro-batches per optimizer step")
    total_batch: int | None = setting(
        None, "videos per optimizer step over all ranks, from which optim.accumulation follows"
    )
    count_repeats: bool = setting(
        False, "count data.repeats as videos in the rule for the learning rate"
    )

    def __post_init__(self) -> None:
        all_at_least("optim.", self, epochs=1, accumulation=1, total_batch=1)
        if self.total_batch is not None and self.accumulation != 1:
            raise ValueError(
                f"optim.accumulation ({self.accumulation}) must be left out with "
                f"optim.total_batch ({self.total_batch}), from which it follows"
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
        """Warm-up epochs."""
        return self._warmup if isinstance(self.warmup_epochs, str) else self.warmup_epochs

    @property
    def _warmup(self) -> int:
        """Warm-up epochs for ``auto``: 40 as published for 800 epochs, fewer in proportion."""
        return min(40, self.epochs // 20)


def check_batch(data: DataConfig, optim: OptimConfig) -> None:
    """Raise ValueError for batch_size=auto without total_batch."""
    if data.batch_size == "auto" and optim.total_batch is None:
        raise ValueError(
            "optim.total_batch (null) must be given while data.batch_size is auto: it is divided "
            "into micro-batches"
        )
