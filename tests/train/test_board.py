"""Events for TensorBoard."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dpserver.errors import OutputError
from dpserver.train.board import Board


def test_a_full_disk_is_one_line_that_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("torch.utils.tensorboard")

    def close(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=rf"cannot write {tmp_path}: No space left on device; make room"):  # noqa: SIM117
        with Board(tmp_path):
            monkeypatch.setattr(module.SummaryWriter, "close", close)
