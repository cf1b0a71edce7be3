import errno
import os
import tempfile
from pathlib import Path

import pytest

from dpserver import files
from dpserver.errors import ConfigError, OutputError


def deny(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let a folder look as if it could not be written to, for root as well."""
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != folder)


def failing(number: int):
    """A function that fails as the system does."""

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_new_file_and_one_to_replace_are_fine(tmp_path):
    (tmp_path / "old.pt").touch()
    files.check_output(tmp_path / "old.pt")
    files.check_output(tmp_path / "new.pt", "--output")


@pytest.mark.parametrize("name", ["no/w.pt", "folder", "file/w.pt"])
def test_what_is_no_file_name_in_a_folder_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"--output .*{name}: expected a file name in an existing folder"):
        files.check_output(tmp_path / name, "--output")


def test_a_device_is_not_replaced():
    with pytest.raises(ConfigError, match=r"^/dev/null: exists and is no file that could be replaced"):
        files.check_output("/dev/null")


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    deny(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match=f"-o .*w.pt: the folder {tmp_path} cannot be written to; change"):
        files.check_output(tmp_path / "w.pt", "-o")
    with pytest.raises(ConfigError, match=f"^runs: the folder {tmp_path} cannot be written to"):
        files.check_folder(tmp_path / "yet" / "to" / "be", "runs")


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^runs: .*/file is a file, expected a folder"):
        files.check_folder(tmp_path / "file" / "folder", "runs")


def test_a_file_is_written_with_the_permissions_of_any_other(tmp_path):
    (tmp_path / "other").touch()
    files.write(tmp_path / "w", b"new")
    assert (tmp_path / "w").read_bytes() == b"new"
    assert (tmp_path / "w").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("module", "function", "number", "message"),
    [
        (tempfile, "mkstemp", errno.EACCES, "Permission denied; name a file in a folder that can be written to"),
        (os, "fsync", errno.ENOSPC, "No space left on device; make room on its disk"),
        (os, "fsync", errno.EFBIG, r"File too large; raise the limit of the size of files \(ulimit -f\)"),
        (os, "fsync", errno.ENOENT, "No such file or directory; name another file"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_and_stays_as_it_was(
    tmp_path, monkeypatch, module, function, number, message
):
    (tmp_path / "w").write_bytes(b"old")
    monkeypatch.setattr(module, function, failing(number))
    with pytest.raises(OutputError, match=f"^cannot write {tmp_path}/w: {message}"):
        files.write(tmp_path / "w", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("w", b"old")]
