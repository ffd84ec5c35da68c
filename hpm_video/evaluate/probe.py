"""Probes: judge the features of an encoder by simple classifiers trained on them.

The encoder is frozen and sees fixed views without masks. Every video is decoded and encoded once
for all kinds of probes (`hpm_video.evaluate.probe_heads`).
"""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpm_video.config import (
    DataConfig,
    LabelsConfig,
    ProbeConfig,
    ProbeJobConfig,
    check_probe_kinds,
)
from hpm_video.config.values import Precision
from hpm_video.data.lists.manifest import (
    Manifest,
    check_labels,
    check_some_exist,
    label_notes,
    read_manifest,
    require_labels,
)
from hpm_video.data.lists.overlap import find_shared
from hpm_video.data.loading.bad_videos import none_readable
from hpm_video.data.loading.loader import view_loader
from hpm_video.data.samples.views import ViewDataset
from hpm_video.evaluate.attentive_grid import GridPoint, Views, grid_scores, heads_for
from hpm_video.evaluate.frozen_encoder import Backbone, load_backbone
from hpm_video.evaluate.kept_probe import KeptProbe, check_keep
from hpm_video.evaluate.predictions import SeveralLabels
from hpm_video.evaluate.probe_heads import (
    LinearResult,
    attentive_scores,
    knn_scores,
    linear_scores,
    num_neighbours,
)
from hpm_video.evaluate.token_file import TokenFile, as_text
from hpm_video.models.precision import choose_precision
from hpm_video.models.tokens import TokenGrid
from hpm_video.runtime.distributed import (
    World,
    gather_objects,
    gather_to_main,
    join_world,
    others_wait,
)
from hpm_video.runtime.progress import Progress
from hpm_video.weights.foreign.stored_model import version_of


@dataclass(frozen=True)
class ProbeLists:
    """Labelled training and judged videos, the number of training classes, and warnings about lists
    that make results unreliable."""

    train: Manifest
    val: Manifest
    num_classes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Encoded:
    """Features of the readable videos of a list, all on the CPU.

    features (K, L * C * D) float32: means over tokens and views, for C cells of the grid and L
    layers. tokens (K, views * L * N, D) float16, if asked for, of ``num_crops`` crops per clip.
    labels (K,), or (K, classes) for multi-label lists. bad: (manifest index, reason) of skipped
    videos. file: where tokens are kept, and whether they were there before.
    """

    features: Tensor
    tokens: Tensor | None
    num_crops: int
    labels: Tensor
    bad: tuple[tuple[int, str], ...]
    file: tuple[Path, bool] | None = None


@dataclass(frozen=True)
class ProbeResult:
    """Result of one kind of probe.

    top1: share of right videos among all; unreadable ones count as wrong. balanced_accuracy: mean
    of that share over classes. mean_ap: replaces both for multi-label lists, see `SeveralLabels`.
    how: the chosen hyperparameters, in words. lr and weight_decay: these as numbers, if chosen.
    grid: all points of attentive_grid. linear: result of the linear probe.
    """

    kind: str
    top1: float | None
    balanced_accuracy: float | None
    how: str
    lr: float | None = None
    weight_decay: float | None = None
    grid: tuple[GridPoint, ...] = ()
    linear: LinearResult | None = None
    mean_ap: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """Available metrics by name."""
        figures = {n: getattr(self, n) for n in ("top1", "balanced_accuracy", "mean_ap")}
        return {name: value for name, value in figures.items() if value is not None}


@dataclass(frozen=True)
class ProbeReport:
    """Results of all kinds. bad: (path, reason, consequence) of unreadable videos.

    warnings: reasons why results are unreliable. precision: of the encoder. encoder, clips: the
    encoder and its input, in words. notes: token files that were read or kept.
    """

    results: tuple[ProbeResult, ...]
    num_train: int
    num_val: int
    bad: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]
    precision: Precision
    encoder: str = ""
    clips: str = ""
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, float]:
        """Metrics by name, for a log record."""
        figures: dict[str, float] = {}
        for result in self.results:
            figures |= {f"{result.kind}_{name}": value for name, value in result.figures.items()}
            if result.lr is not None:
                figures[f"{result.kind}_lr"] = result.lr
            if result.weight_decay is not None:
                figures[f"{result.kind}_weight_decay"] = result.weight_decay
        figures["unreadable"] = len(self.bad)
        return figures


def probe(
    checkpoint: str | Path,
    *,
    train: Sequence[str],
    val: Sequence[str],
    kinds: Sequence[str],
    config: ProbeJobConfig,
    keep: str | Path | None = None,
) -> ProbeReport | None:
    """Probe the encoder of a pre-training or fine-tuning checkpoint; None on ranks other than 0.

    Clips are sampled as in the checkpoint's settings, with the views of ``config``. ``keep``:
    folder for a run whose classifier is the encoder with the linear probe as its head.
    """
    check_probe_kinds("kind", kinds)
    if keep is not None:
        check_keep(keep, kinds, config.probe)
    lists = read_probe_lists(
        train, val, root=config.root, names=("--train", "--val"), labels=config.probe.labels
    )
    with join_world(config.device, setting="device") as world:
        precision, _ = choose_precision(config.precision, world, setting="precision")
        config = replace(config, precision=precision)
        loaded = load_backbone(
            checkpoint,
            precision=config.precision,
            device=world.device,
            clip=config.clip,
            settings=config.encoder,
        )
        backbone = loaded.backbone
        sizes = {"width": backbone.width, "num_layers": len(backbone.layers)}
        check_probe(lists, kinds, config.probe, grid=backbone.grid, **sizes)
        kept = None if keep is None else KeptProbe.of(checkpoint, loaded, config)
        file, size, written_ns = version_of(config.encoder.weights or checkpoint)
        asked = [asdict(config.encoder), asdict(config.clip), config.precision]
        origin = [os.fspath(file), size, written_ns, *asked]
        report = probe_backbone(
            backbone, lists, loaded.data, config, world, kinds=kinds, origin=origin
        )
        if report is None:
            return None
        if kept is not None:
            (linear,) = (each.linear for each in report.results if each.linear is not None)
            kept.write(Path(keep or ""), linear, classes=lists.train.classes, train=train, val=val)
    data, views = loaded.data, config.probe
    return replace(
        report,
        warnings=(*report.warnings, *loaded.notes),
        encoder=loaded.kind if loaded.step is None else f"{loaded.kind}, step {loaded.step}",
        clips=f"{data.num_frames} x {data.crop_size} x {data.crop_size} {data.frames_in_words}, "
        f"{views.num_clips} x {views.num_crops}",
    )


def read_probe_lists(
    train: Sequence[str],
    val: Sequence[str],
    *,
    root: str | None,
    names: tuple[str, str],
    root_option: str = "root=",
    labels: LabelsConfig | None = None,
) -> ProbeLists:
    """Read both lists; the first one defines the classes. ``names``: of the two lists in messages,
    as ``root_option``.
    ``labels``: label format of multi-label lists.

    Raises ValueError for a video without a label, or with one that the first list lacks, and for
    videos that do not exist.
    """
    learnt = read_manifest(list(train), root=root, several=labels)
    num_classes = require_labels(learnt, name=names[0], lists=train)
    judged = read_manifest(
        list(val),
        root=root,
        classes=learnt.class_names,
        numbers_only=learnt.classes is None,
        several=labels,
    )
    for manifest, name in ((learnt, names[0]), (judged, names[1])):
        check_some_exist(manifest, option=root_option)
        check_labels(manifest, num_classes, classes_of=names[0], place=f" in {name}")
    warnings = [*learnt.notes, *label_notes(learnt), *judged.notes]
    if (overlap := find_shared(learnt, judged)).num_shared:
        warnings.append(f"the training list also contains {overlap} of the validation list")
    return ProbeLists(learnt, judged, num_classes, tuple(dict.fromkeys(warnings)))


def check_probe(
    lists: ProbeLists,
    kinds: Sequence[str],
    settings: ProbeConfig,
    *,
    grid: TokenGrid,
    width: int,
    num_layers: int = 1,
) -> None:
    """Raise ValueError for settings that do not fit: more cells than tokens, heads that do not
    divide the width D, too many tokens to keep, a kind that cannot learn several labels."""
    one_label = [kind for kind in kinds if kind in ("knn", "attentive_grid")]
    if one_label and lists.train.label_sets is not None:
        raise ValueError(
            f"kind ({', '.join(one_label)}) must be linear or attentive for lists with several "
            "labels per video"
        )
    sizes = (grid.time, grid.height, grid.width)
    if any(cells > size for cells, size in zip(settings.cells, sizes, strict=True)):
        raise ValueError(
            f"probe.cells ({list(settings.cells)}) must not be finer than the grid, {grid}"
        )
    if "attentive_grid" in kinds:
        heads_for(width, settings.grid)
    num_videos = len(lists.train) + len(lists.val)
    views = settings.num_clips * (
        len(lists.train) * train_crops(settings) + len(lists.val) * settings.num_crops
    )
    cells = num_videos * math.prod(settings.cells) * torch.float32.itemsize
    tokens = views * grid.num_tokens * torch.float16.itemsize if _needs_tokens(kinds) else 0
    take = f"of {num_videos} videos take"
    advice = "fewer views, another kind of probe"
    if settings.cache is None:
        advice = "fewer views, probe.cache=FOLDER on a large disk, another kind of probe"
    for each, what, fewer in (
        (cells, f"cells {take}", "fewer probe.cells"),
        (tokens, f"tokens {take} for the attentive probe", advice),
    ):
        needed = each * width * num_layers / 1e9
        if needed > settings.most_token_gb:
            raise ValueError(
                f"probe.most_token_gb ({settings.most_token_gb:g}) must be at least "
                f"{math.ceil(needed * 10) / 10}, the GB that the {what}; or use {fewer} "
                "or shorter lists"
            )


def train_crops(settings: ProbeConfig) -> int:
    """Crops per training clip."""
    return settings.num_crops if settings.train_crops is None else settings.train_crops


def _needs_tokens(kinds: Sequence[str]) -> bool:
    return any(kind.startswith("attentive") for kind in kinds)


def probe_backbone(
    backbone: Backbone,
    lists: ProbeLists,
    data: DataConfig,
    config: ProbeJobConfig,
    world: World,
    *,
    kinds: Sequence[str],
    origin: Any = None,
) -> ProbeReport | None:
    """Judge an encoder by probes of all ``kinds``; rank 0 returns the report.

    ``data`` sets the clips; ``config`` sets views, workers and the probes. ``origin``: see
    `encode_videos`. Raises UnreadableDataError, on rank 0, if no video of a list is readable.
    """
    train, val = (
        encode_videos(
            backbone, manifest, data, config, world,
            with_tokens=_needs_tokens(kinds), num_crops=num_crops, origin=origin,
            num_classes=lists.num_classes,
        )
        for manifest, num_crops in (
            (lists.train, train_crops(config.probe)),
            (lists.val, config.probe.num_crops),
        )
    )  # fmt: skip
    # Training may take longer than the timeout of a collective
    with others_wait(world):
        if train is None or val is None:
            return None
        bad: list[tuple[str, str, str]] = []
        parts = (train, lists.train, "not trained on"), (val, lists.val, "counted as wrong")
        for part, manifest, what in parts:
            named = [(manifest.path(index), reason, what) for index, reason in part.bad]
            if not len(part.labels):
                raise none_readable([(path, reason) for path, reason, _ in named])
            bad += named
        results = []
        for kind in kinds:
            scores, how, chosen = _scores(
                kind, train, val, lists.num_classes, model=backbone, settings=config.probe
            )
            if lists.val.label_sets is not None:
                chosen["mean_ap"] = _mean_ap(scores, val, lists)
                results.append(ProbeResult(kind, None, None, how, **chosen))
                continue
            right = (scores.argmax(dim=1).cpu() == val.labels).numpy()
            shares = accuracies(right, val.labels.numpy(), np.asarray(lists.val.labels))
            results.append(ProbeResult(kind, *shares, how, **chosen))
    return ProbeReport(
        tuple(results),
        num_train=len(lists.train),
        num_val=len(lists.val),
        bad=tuple(bad),
        warnings=lists.warnings,
        precision=backbone.precision,
        notes=tuple(
            f"tokens were {'read from' if was_there else 'written to'} {path}"
            for path, was_there in filter(None, (train.file, val.file))
        ),
    )


def encode_videos(
    backbone: Backbone,
    manifest: Manifest,
    data: DataConfig,
    config: ProbeJobConfig,
    world: World,
    *,
    with_tokens: bool,
    num_crops: int | None = None,
    origin: Any = None,
    num_classes: int | None = None,
) -> Encoded | None:
    """Encode the fixed views of all videos of a list, shared between processes.

    ``num_crops``: per clip, if not as in the settings. ``origin``: identifies the encoder for
    probe.cache. ``num_classes``: of multi-label lists, if not the list's own. Rank 0 gets every
    video once, in list order; other ranks get None.
    """
    settings = config.probe
    num_crops = num_crops or settings.num_crops
    file = None
    if settings.cache is not None and with_tokens and world.is_main:
        names = [manifest.path(index) for index in range(len(manifest))]
        clips = [asdict(data), settings.num_clips, num_crops, list(settings.cells)]
        described = [origin, clips, names, np.asarray(manifest.labels).tolist()]
        if manifest.label_sets is not None:
            described += [manifest.digest(), num_classes]
        file = TokenFile.of(settings.cache, described)
    (is_there, *_) = gather_objects(file is not None and file.is_there, world)
    if is_there:
        return None if file is None else _read(file, num_crops)
    views, count = settings.num_clips * num_crops, len(manifest)
    batches = view_loader(
        ViewDataset(manifest, data, num_clips=settings.num_clips, num_crops=num_crops),
        batch_size=settings.batch_size,
        num_workers=config.num_workers,
        rank=world.rank,
        world_size=world.size,
        timeout_s=config.decode_timeout_s or None,
        device=world.device,
    )
    num_features = math.prod(settings.cells) * backbone.feature_width
    features = torch.empty(count if world.is_main else 0, num_features)
    shape = count, views * backbone.num_tokens, backbone.width
    bad: list[tuple[int, str]] = []
    with ExitStack() as stack:
        tokens = None
        if file is not None:
            tokens = stack.enter_context(file.new(*shape))
        elif with_tokens and world.is_main:
            tokens = torch.empty(shape, dtype=torch.float16)
        progress = Progress("encoded" if world.is_main else "", total=count)
        stack.enter_context(progress)
        # Shares may differ by a batch. Gathering per batch keeps tokens from filling device memory
        for _ in range(-(-count // (world.size * settings.batch_size)) if count else 0):
            batch, mine = next(batches, None), None
            if batch is not None:
                encoded = backbone.encode(batch.on(world.device))
                pooled = backbone.pooled(encoded, settings.cells)  # (B * views, L * C * D)
                pooled = pooled.unflatten(0, (-1, views)).mean(dim=1).cpu()
                each = None
                if with_tokens:  # (B * views, L * N, D) -> (B, views * L * N, D)
                    each = backbone.tokens(encoded).unflatten(0, (-1, views)).flatten(1, 2)
                    each = each.to("cpu", torch.float16)
                mine = batch.indices.tolist(), pooled, each, batch.errors
            for indices, pooled, each, errors in filter(None, gather_to_main(mine, world)):
                features[indices] = pooled
                if tokens is not None:
                    tokens[indices] = each
                pairs = zip(indices, errors, strict=True)
                bad += [(index, error) for index, error in pairs if error is not None]
                for error in errors:
                    progress.step(bad=error is not None)
        if not world.is_main:
            return None
        labels = torch.from_numpy(manifest.targets(np.arange(count), num_classes))
        bad.sort()
        if bad:
            readable = torch.ones(count, dtype=torch.bool)
            readable[[index for index, _ in bad]] = False
            features, labels = features[readable], labels[readable]
            if tokens is not None:  # compacted in place: memory may not hold two copies
                for new, old in enumerate(readable.nonzero()[:, 0].tolist()):
                    if new != old:
                        tokens[new] = tokens[old]
                tokens = tokens[: len(labels)]
    if file is not None:
        assert tokens is not None
        arrays = {"features": features.numpy(), "labels": labels.numpy(), **as_text(bad)}
        file.finish(tuple(tokens.shape), **arrays)
    kept = None if file is None else (file.path, False)
    return Encoded(features, tokens, num_crops, labels, tuple(bad), kept)


def _read(file: TokenFile, num_crops: int) -> Encoded:
    tokens, arrays = file.read()
    bad = tuple(zip(arrays["bad"].tolist(), arrays["reasons"].tolist(), strict=True))
    features, labels = (torch.from_numpy(arrays[name]) for name in ("features", "labels"))
    return Encoded(features, tokens, num_crops, labels, bad, (file.path, True))


def _scores(
    kind: str, train: Encoded, val: Encoded, classes: int, *, model: Backbone, settings: ProbeConfig
) -> tuple[Tensor, str, dict[str, Any]]:
    """Train one kind of probe on ``train`` and apply it to ``val``: scores (V, C), the chosen
    hyperparameters in words, and as fields of `ProbeResult`."""
    device = model.device
    labels = train.labels.to(device)
    given = train.features.to(device), labels, val.features.to(device)
    if kind == "knn":
        occurring, most = len(train.labels.unique()), settings.knn_neighbours
        neighbours = num_neighbours(len(labels), occurring, most=most)
        scores = knn_scores(
            *given,
            num_classes=classes,
            neighbours=neighbours,
            temperature=settings.knn_temperature,
        )
        return scores, f"{neighbours} neighbours", {}
    if kind == "linear":
        linear = linear_scores(*given, num_classes=classes, epochs=settings.linear_epochs)
        by = "the middle one, as no class has videos to hold out"
        if linear.lr_was_chosen:
            by = "chosen on a fifth of the training videos"
        return linear.scores, f"lr {linear.lr:g}, {by}", {"lr": linear.lr, "linear": linear}
    assert train.tokens is not None and val.tokens is not None
    if kind == "attentive_grid":
        found = grid_scores(
            Views(train.tokens, settings.num_clips, train.num_crops),
            train.labels,
            Views(val.tokens, settings.num_clips, val.num_crops),
            val.labels,
            num_classes=classes,
            settings=settings.grid,
            precision=model.precision,
            device=device,
        )
        best = found.best
        how = f"lr {best.lr:g}, weight decay {best.weight_decay:g}, {found.how}"
        chosen = {"lr": best.lr, "weight_decay": best.weight_decay, "grid": found.points}
        return found.scores, how, chosen
    assert kind == "attentive"
    sizes = {"num_classes": classes, "heads": model.heads}
    epochs, lr = settings.attentive_epochs, settings.attentive_lr
    scores = attentive_scores(
        train.tokens, labels, val.tokens, **sizes, epochs=epochs, lr=lr, device=device
    )
    return scores, f"lr {lr:g}, as given", {}


def _mean_ap(scores: Tensor, val: Encoded, lists: ProbeLists) -> float:
    """Mean average precision of scores (K, C) of the readable videos of ``val``; unreadable ones
    rank last."""
    labels = lists.val.targets(np.arange(len(lists.val)), lists.num_classes) > 0
    whole = np.zeros(labels.shape, dtype=np.float32)
    result = SeveralLabels(whole, labels, (), val.bad)
    whole[result.readable] = scores.cpu().numpy()
    return result.mean_ap() or 0.0


def accuracies(
    right: np.ndarray, labels: np.ndarray, all_labels: np.ndarray
) -> tuple[float, float]:
    """Top-1 and balanced accuracy over all videos (V,). Those with ``labels`` (K,) were classified,
    ``right`` (K,) or not; the rest count as wrong."""
    classes = np.unique(all_labels)
    recalls = [right[labels == label].sum() / (all_labels == label).sum() for label in classes]
    return float(right.sum() / len(all_labels)), float(np.mean(recalls))
