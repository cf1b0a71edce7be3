from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from dpserver.errors import ConfigError
from dpserver.transport import control
from dpserver.transport.control import ControlServer, ask, default_path, directories, find_sockets
from tests.patience import PATIENCE


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The only directory for control sockets."""
    directory = tmp_path / "dpserver"
    directory.mkdir(mode=0o700)
    monkeypatch.setattr(control, "directories", lambda: [directory])
    return directory


def dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()


def test_whoever_connects_is_told(home):
    answers = iter([b"one", b"two" * 1_000_000, b""])
    with ControlServer(home / "1", lambda: next(answers)):
        assert ask(home / "1", PATIENCE) == b"one"
        assert ask(home / "1", PATIENCE) == b"two" * 1_000_000
        assert ask(home / "1", PATIENCE) == b""


def test_the_socket_is_for_its_user_alone_and_goes_with_the_server(home):
    with ControlServer(home / "1", lambda: b"x"):
        mode = (home / "1").lstat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert [path.name for path in home.iterdir()] == ["1"]
    assert list(home.iterdir()) == []


def test_clients_that_do_not_read_do_no_harm(home, monkeypatch):
    monkeypatch.setattr(control, "CLIENT_SECONDS", 0.05)
    with ControlServer(home / "1", lambda: b"x" * 2_000_000):
        idle = []
        for _ in range(5):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(home / "1"))
            idle.append(sock)
        assert ask(home / "1", PATIENCE) == b"x" * 2_000_000
        for sock in idle:
            sock.close()


def test_a_client_that_leaves_at_once(home, caplog):
    with ControlServer(home / "1", lambda: b"x" * 2_000_000):
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(home / "1"))
        assert ask(home / "1", PATIENCE)
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


def test_a_bug_in_the_answer_costs_one_client_its_answer(home, caplog):
    answers = iter([ZeroDivisionError("odd"), b"fine"])

    def answer() -> bytes:
        match next(answers):
            case bytes(text):
                return text
            case error:
                raise error

    with ControlServer(home / "1", answer):
        assert ask(home / "1", PATIENCE) == b""
        assert ask(home / "1", PATIENCE) == b"fine"
    assert "a client of the control socket gets no answer" in caplog.text


def test_the_socket_of_a_dead_daemon_is_replaced(home):
    dead_socket(home / "1")
    with ControlServer(home / "1", lambda: b"x"):
        assert ask(home / "1", PATIENCE) == b"x"


def test_the_socket_of_a_living_daemon_is_not(home):
    with ControlServer(home / "1", lambda: b"x"):
        with pytest.raises(
            ConfigError, match=r"there can be no control socket .*another daemon, or a file, has that name"
        ):
            ControlServer(home / "1", lambda: b"y")
        assert ask(home / "1", PATIENCE) == b"x"


@pytest.mark.parametrize(
    "make", [lambda p: p.write_text("precious"), lambda p: p.mkdir(), lambda p: p.symlink_to(p.with_name("else"))]
)
def test_what_is_no_socket_is_left_alone(home, make):
    make(home / "1")
    with pytest.raises(ConfigError, match="there can be no control socket"):
        ControlServer(home / "1", lambda: b"x")
    assert [path.name for path in home.iterdir()] == ["1"]


@pytest.mark.parametrize("name", ["no/such/directory", "x" * 120])
def test_paths_that_cannot_be(home, name):
    with pytest.raises(ConfigError, match="give another --control, or --control off"):
        ControlServer(home / name, lambda: b"x")


def test_asking_a_dead_daemon_removes_its_socket(home, tmp_path):
    dead_socket(home / "1")
    assert ask(home / "1") is None
    assert not (home / "1").exists()
    dead_socket(tmp_path / "elsewhere")
    assert ask(tmp_path / "elsewhere") is None
    assert (tmp_path / "elsewhere").exists()


def test_asking_nobody(home):
    assert ask(home / "1") is None


def test_a_daemon_that_does_not_answer(home):
    """Stopped, say: the system accepts for it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(home / "1"))
        sock.listen()
        assert ask(home / "1", 0.05) == b""
    assert (home / "1").exists()


def test_a_daemon_that_answers_without_end(home):
    is_over = threading.Event()

    def babble(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            try:
                while not is_over.is_set():
                    sock.sendall(b"x" * 65536)
            except OSError:
                return

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "1"))
        listener.listen()
        thread = threading.Thread(target=babble, args=(listener,))
        thread.start()
        assert ask(home / "1", PATIENCE) == b""
        is_over.set()
        thread.join(PATIENCE)


def test_sockets_are_found_by_number(home):
    for name in ("20", "3", ".4.4", "notes"):
        (home / name).touch()
    assert [path.name for path in find_sockets()] == ["3", "20"]


def test_the_usual_place(tmp_path, monkeypatch):
    fallback = Path(f"/tmp/dpserver-{os.geteuid()}")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert directories() == [fallback]
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert directories() == [tmp_path / "dpserver", fallback]
    path = default_path()
    assert path == tmp_path / "dpserver" / str(os.getpid())
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_place_that_others_may_enter_is_not_used(tmp_path, monkeypatch):
    open_to_all, link, own = tmp_path / "open", tmp_path / "link", tmp_path / "own"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    own.mkdir(mode=0o700)
    link.symlink_to(own)
    (open_to_all / "7").touch()
    monkeypatch.setattr(control, "directories", lambda: [open_to_all, link, tmp_path / "no" / "where", own])
    assert default_path().parent == own
    assert find_sockets() == []
    monkeypatch.setattr(control, "directories", lambda: [open_to_all])
    with pytest.raises(ConfigError, match=r"open must be a directory of this user with mode 0700"):
        default_path()
