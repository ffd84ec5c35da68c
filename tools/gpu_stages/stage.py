"""What every stage is given, and how it reports: one JSON line for each thing it found."""

import json
import math
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hpm_video.bench.variants import plain, step_config
from hpm_video.config import DataConfig, PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.config.values import CropOn
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.prepare.listing import list_folder
from hpm_video.data.prepare.toy import write_toy_videos

Figure = str | int | float | None


@dataclass(frozen=True)
class Stage:
    """One stage of a check.

    kind: the device, cuda or cpu. tiny: sizes that a CPU runs in seconds. clips: a folder of
    videos, None: toy videos. folder: for files, shared by all stages, removed at the end. output:
    the JSON lines. run_name: names this check in them. end_s: when to have finished, by
    ``time.monotonic()``.
    """

    name: str
    kind: str
    tiny: bool
    clips: str | None
    folder: str
    output: str
    run_name: str
    end_s: float

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind, 0) if self.on_gpu else torch.device("cpu")

    @property
    def on_gpu(self) -> bool:
        return self.kind == "cuda"

    @property
    def seconds_left(self) -> float:
        return self.end_s - time.monotonic()

    def either(self, full: Any, tiny: Any) -> Any:
        """The size to work at."""
        return tiny if self.tiny else full

    def row(self, what: str, *, ok: bool | None = None, note: str = "", **figures: Figure) -> None:
        """Append what was found. ``ok`` is None where nothing was judged; a ``note`` says why
        something could not be measured."""
        line = {"run": self.run_name, "stage": self.name, "what": what, "figures": figures}
        with open(self.output, "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "ok": ok, "note": note}) + "\n")

    def check(self, what: str, found: float, limit: float, **figures: Figure) -> None:
        """Append a difference that must not be above its limit."""
        ok = math.isfinite(found) and found <= limit
        self.row(what, ok=ok, difference=found, limit=limit, **figures)

    @contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """A part of the stage: if it fails, that is reported, and the parts after it still run."""
        try:
            yield
        except ModuleNotFoundError as error:
            traceback.print_exc()
            is_ours = (error.name or "").split(".")[0] in ("hpm_video", "gpu_stages")
            self.row(what, ok=False if is_ours else None, note=f"not measured: {error}")
        except torch.OutOfMemoryError:
            self.row(what, note="not measured: out of GPU memory")
        except Exception as error:  # noqa: BLE001 - whatever it is, the table shows it
            traceback.print_exc()
            self.row(what, ok=False, note=described(error))
        finally:
            if self.on_gpu:
                torch.cuda.empty_cache()

    def has_time(self, what: str, *, seconds: float = 0) -> bool:
        """Whether there is time for a part that takes about so long; reports it if not."""
        if seconds < self.seconds_left:
            return True
        self.row(what, note="not measured: no time left")
        return False

    def config(self, batch_size: int, *, size: Any = "base", **more: Any) -> PretrainConfig:
        """The default pre-training: 16 x 224² in bfloat16, or tiny in float32."""
        if not self.tiny:
            return step_config(
                size=size, frames=16, crop_size=224, batch_size=batch_size,
                **{"precision": "bfloat16", **more},
            )  # fmt: skip
        config = step_config(
            size="tiny", frames=4, crop_size=32, batch_size=batch_size, decoder_depth=1,
            **{"precision": "float32", **more},
        )  # fmt: skip
        small = {"width": 32, "heads": 2, "decoder_width": 32, "decoder_heads": 2}
        model = replace(config.model, **small, depth=1, patch_size=8)
        return replace(config, model=model, masking=replace(config.masking, mask_ratio=0.75))

    def pair(self, batch_size: int, **more: Any) -> dict[str, PretrainConfig]:
        """Plain VideoMAE and the default, by the names of the table."""
        config = self.config(batch_size, **more)
        return {"plain": plain(config), "default": config}

    def manifest(self) -> str:
        """The list of the clips, or of toy videos, written by the first stage that needs it."""
        folder = Path(self.folder)
        if self.clips is None:
            count, size, frames = self.either((256, 256, 48), (32, 32, 12))
            toys = write_toy_videos(
                folder / "toy", num_videos=count, size=size, num_frames=frames, formats=("mp4",),
                num_workers=8,
            )  # fmt: skip
            return str(toys)
        listed = folder / "clips.csv"
        if not listed.exists():
            list_folder(self.clips, listed)
        return str(listed)

    def run(self, folder: Path, *settings: str, steps: int, batch_size: int = 0) -> PretrainConfig:
        """A pre-training of ``steps`` steps on the clips, of a tiny model, as the loop takes it."""
        manifest = read_manifest(self.manifest(), labels=False)
        batch_size = batch_size or self.either(16, 4)
        listed = Path(f"{folder}.csv")
        count = steps * batch_size
        write_manifest(listed, [{"path": manifest.path(k % len(manifest))} for k in range(count)])
        sizes = self.either(
            ["model.size=tiny", "data.crop_size=112", "data.num_workers=2"],
            [
                *("model.width=32", "model.depth=2", "model.heads=2", "model.patch_size=8"),
                *("model.decoder_width=32", "model.decoder_heads=2", "model.decoder_depth=1"),
                *("data.num_frames=4", "data.crop_size=32", "data.num_workers=0"),
                *("masking.mask_ratio=0.75", "run.precision=float32"),
            ],
        )
        words = [
            *(f"run.output_dir={folder}", f"run.device={self.kind}", f"data.manifest={listed}"),
            *("run.log_every=1000", "run.checkpoint_every_minutes=1000", "run.picture_every=0"),
            *("run.compile=false", "data.decoder=pyav", f"data.batch_size={batch_size}"),
            *("optim.epochs=1", "optim.warmup_epochs=0", "masking.hard_ratio_start=0.5"),
        ]
        return load_config(PretrainConfig, None, [*words, *sizes, *settings])

    def crop_data(self, crop_on: CropOn, *, batch_size: int) -> DataConfig:
        """Settings of batches of two crops of each clip, made by workers or on the device."""
        return DataConfig(
            num_frames=self.either(16, 4), crop_size=self.either(224, 32), repeats=2, flip=True,
            batch_size=batch_size, num_workers=0, decoder="pyav", crop_on=crop_on,
        )  # fmt: skip

    def split(self) -> tuple[str, str]:
        """Two lists of the clips: of every class, each fourth is held out."""
        manifest = read_manifest(self.manifest())
        rows: dict[str, list[dict[str, object]]] = {"train": [], "held_out": []}
        seen: Counter[int] = Counter()
        for index, label in enumerate(manifest.labels.tolist()):
            seen[label] += 1
            place = "train" if seen[label] % 4 else "held_out"
            rows[place].append(
                {"path": manifest.path(index), "label": None if label < 0 else label}
            )
        lists = {name: Path(self.folder) / f"{name}.csv" for name in rows}
        for name, path in lists.items():
            write_manifest(path, rows[name])
        return str(lists["train"]), str(lists["held_out"])


def described(error: BaseException) -> str:
    """The kind of an error and the line of its message that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
