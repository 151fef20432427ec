"""What the caller of a transfer decides: when to stop, how wide to go, what to be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from airflow_provider_modelsync.core.flow.cancel import CancelToken
from airflow_provider_modelsync.core.transfer.checkpoint import CheckpointStore
from airflow_provider_modelsync.core.transfer.progress import Progress, Report, Tally


@dataclass(frozen=True, slots=True)
class Control:
    """
    :param workers: threads that move bytes.
    :param cancel: ends the work within 4 s of being cancelled.
    :param on_progress: told now and then how far the transfer is.
    :param checkpoint: where tries remember what is done; ``None`` = every try starts afresh.
    :param is_last_try: nobody will come back to resume this.
    :param piece_size: bytes of a piece that a large file comes down in; ``None`` = as is usual.
    :param tally: where the operation's transfers are counted.
    """

    workers: int = 4
    cancel: CancelToken = field(default_factory=CancelToken)
    on_progress: Callable[[Report], None] | None = None
    checkpoint: CheckpointStore | None = None
    is_last_try: bool = False
    piece_size: int | None = None
    tally: Tally = field(default_factory=Tally)

    def progress(self, total: int) -> Progress:
        """Return a counter for a transfer of ``total`` bytes."""
        return Progress(total, self.on_progress, tally=self.tally)
