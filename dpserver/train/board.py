"""TensorBoard events of a training; needs the extra `tensorboard`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from dpserver.errors import ConfigError
from dpserver.files import writing
from dpserver.train.loop import StepReport


class Board:
    """Writes the errors of a training as TensorBoard events.

    Args:
        folder: where the events go.
        restart_step: steps already taken; later events in the folder are hidden.

    Raises:
        ConfigError: tensorboard is not installed.
        OutputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, restart_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "training.tensorboard needs tensorboard: pip install 'dpserver[tensorboard]', or set it to false"
            ) from None
        self._folder = folder
        with writing(folder):
            self._writer = SummaryWriter(str(folder), purge_step=restart_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self._folder):
            self._writer.close()

    def write(self, report: StepReport) -> None:
        """Add the values of one step.

        Raises:
            OutputError: the events so far cannot be written.
        """
        with writing(self._folder):
            for source, values in (("training", report.train), ("validation", report.validation)):
                for name, value in values.items():
                    self._writer.add_scalar(f"rmse_{name}/{source}", value, report.step)
            self._writer.add_scalar("lr", report.lr, report.step)
