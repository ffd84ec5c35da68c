"""A warning if the encoder collapses to the same features for every input."""

from hpm_video.train.run.logs import Record, RunLog

# Effective rank below which features count as collapsed: they nearly lie on a line. See
# docs/pretrain.md for healthy values.
COLLAPSED_BELOW = 2.0


class CollapseWatch:
    """Counts consecutive records that show a collapsed encoder.

    in_a_row: the count, part of checkpoints. Records without the figure (skipped steps) are
    ignored.
    """

    def __init__(self, patience: int, in_a_row: int = 0) -> None:
        self._patience, self.in_a_row = patience, in_a_row

    def note(self, record: Record, log: RunLog) -> None:
        """Add a record; warns at the ``patience``-th consecutive one, 0 = never."""
        rank, variation = record["effective_rank"], record["feature_variation"]
        if rank is None:
            return
        self.in_a_row = self.in_a_row + 1 if rank < COLLAPSED_BELOW else 0
        if self._patience and self.in_a_row == self._patience:
            log.warning(
                f"the encoder has collapsed: {self.in_a_row} records in a row have an "
                f"effective_rank below {COLLAPSED_BELOW:g} (now {rank:.2f}, feature_variation "
                f"{variation:.2g}), so its features are nearly the same for every token; start "
                "again with a lower optim.base_lr or more optim.warmup_epochs",
                tag="warning/collapse",
                step=int(record["step"] or 0),
            )
