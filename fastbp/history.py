"""What training has seen, and who is told of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


@dataclass(repr=False)
class History:
    """What training has seen, an entry an epoch; saved with the network.

    Attributes:
        loss: mean over the epoch's batches of the loss before each update, weighted with rows (or sample weights);
            their sum where the loss is a sum.
        validation_loss, validation_score: on the validation data after the epoch; empty without any.
        learning_rate: of the epoch's last step.
        seconds: wall time of the epoch's steps.
        rows: rows of the epoch.
        stopped: why the last ``fit`` ended: "epochs", "patience", "callback" or "interrupted".
        best_epoch: with patience, the epoch (from 0) whose parameters were kept.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_score: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    stopped: str = ""
    best_epoch: int | None = None

    @property
    def epochs(self) -> int:
        return len(self.loss)

    def __repr__(self) -> str:
        if not self.loss:
            return "History(no epochs)"
        score = f", validation score {self.validation_score[-1]:.4g}" if self.validation_score else ""
        seconds, why = sum(self.seconds), f", stopped: {self.stopped}" if self.stopped else ""
        return f"History({self.epochs} epochs, loss {self.loss[-1]:.4g}{score}, {seconds:.3g} s{why})"

    def to_config(self) -> dict[str, Any]:
        return asdict(self)

    def truncate(self, epochs: int, validated: int) -> None:
        """Forget the epochs from that number on, and the validations from theirs: not every fit validates."""
        for entries in (self.loss, self.learning_rate, self.seconds, self.rows):
            del entries[epochs:]
        for entries in (self.validation_loss, self.validation_score):
            del entries[validated:]
        if self.best_epoch is not None and self.best_epoch >= epochs:
            self.best_epoch = None


class Reporter(Protocol):
    """Draws progress. ``fastbp.progress`` has the one for terminals."""

    def slice(self, epoch: int, done: float, loss: float, rows_a_second: float) -> None:
        """After every slice of steps: epochs ended, fraction of all steps done, loss of the last step."""

    def epoch(self, history: History) -> None:
        """After every epoch, and after whole epochs that ran as one slice."""

    def close(self) -> None:
        """When training ends, however it does."""
