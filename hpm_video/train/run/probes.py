"""Probes during pre-training."""

import time

from torch import nn

from hpm_video.config import PretrainConfig, ProbeJobConfig
from hpm_video.evaluate.frozen_encoder import Backbone
from hpm_video.evaluate.probe import check_probe, probe_backbone, read_probe_lists
from hpm_video.models.ema import average_of
from hpm_video.models.parallel import load_whole
from hpm_video.models.vit import Encoder
from hpm_video.runtime.distributed import World
from hpm_video.train.run.logs import RunLog


class RunProbe:
    """Probes the encoder every ``run.probe_every`` epochs, without affecting the run.

    The constructor reads the lists and raises their errors.
    """

    def __init__(self, config: PretrainConfig, encoder: Encoder, world: World) -> None:
        self._config, self._world, self._lists = config, world, None
        self._has_warned = False
        self._named: set[tuple[str, str]] = set()  # unreadable videos, reported once per list
        self._whole: Encoder | None = None  # local copy of a sharded encoder
        if not config.run.probe_every:
            return
        if config.run.parallel == "fsdp":
            self._whole = average_of(encoder)
        settings = config.probe
        self._lists = read_probe_lists(
            settings.train_manifest,
            settings.val_manifest,
            root=config.data.root,
            names=("probe.train_manifest", "probe.val_manifest"),
            root_option="data.root=",
            labels=settings.labels,
        )
        check_probe(self._lists, settings.kinds, settings, grid=encoder.grid, width=encoder.width)

    def run(self, encoder: Encoder, *, step: int, epoch: float, log: RunLog) -> None:
        """Probe the encoder and append a record."""
        assert self._lists is not None
        start, data = time.monotonic(), self._config.data
        if self._whole is not None:
            encoder = load_whole(self._whole.to(self._world.device), encoder)
        asked = ProbeJobConfig(
            precision=self._config.run.precision,
            num_workers=data.num_workers,
            decode_timeout_s=data.decode_timeout_s,
            probe=self._config.probe,
        )
        backbone = Backbone(encoder, nn.Identity(), asked.precision)
        kinds = self._config.probe.kinds
        report = probe_backbone(backbone, self._lists, data, asked, self._world, kinds=kinds)
        if report is None:
            return
        if not self._has_warned:
            self._has_warned = True
            for warning in report.warnings:
                log.line(f"warning: {warning}")
        for path, reason, what in report.bad:
            if (path, what) not in self._named:
                self._named.add((path, what))
                log.line(f"unreadable in a probe, {what}: {path}: {reason}")
        log.record({"step": step, "epoch": round(epoch, 4), **report.record()}, prefix="probe")
        log.line(f"the probe took {time.monotonic() - start:.1f} s")
