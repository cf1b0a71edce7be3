import os
import subprocess
import sys

import pytest

from dpserver import __version__
from dpserver.cli import app
from dpserver.errors import ModelFileError
from tests.cli.commands import exit_code


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        (["--model", "w.pt", "--port", "31415"], ["serve", "--model", "w.pt", "--port", "31415"]),
        (["-a", "localhost"], ["serve", "-a", "localhost"]),
        (["--model", "w.pt", "--help"], ["serve", "--model", "w.pt", "--help"]),
        (["serve", "--model", "w.pt"], ["serve", "--model", "w.pt"]),
        (["train", "input.json"], ["train", "input.json"]),
        (["trian", "input.json"], ["trian", "input.json"]),
        (["--help"], ["--help"]),
        (["-h"], ["-h"]),
        (["--version"], ["--version"]),
        ([], []),
    ],
)
def test_options_alone_mean_serve(given, understood):
    assert app.with_command(given) == understood


def test_help_shows_bare_serving_before_the_commands(monkeypatch, capsys):
    assert exit_code(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert text.index("dpserver --model w.pt --port 31415") < text.index("Commands")
    for command in ("serve", "train", "test", "info", "demo"):
        assert command in text


def test_no_arguments_show_the_help(monkeypatch, capsys):
    exit_code(monkeypatch)
    streams = capsys.readouterr()
    assert "dpserver --model w.pt --port 31415" in streams.out + streams.err


def test_version(monkeypatch, capsys):
    assert exit_code(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"dpserver {__version__}\n"


def test_a_mistyped_command_gets_a_suggestion(monkeypatch, capsys):
    assert exit_code(monkeypatch, "trian", "input.json") == 2
    assert "Did you mean 'train'?" in " ".join(capsys.readouterr().err.split())


def test_a_mistyped_option_gets_a_suggestion(monkeypatch, capsys):
    assert exit_code(monkeypatch, "--model", "w.pt", "--prot", "31415") == 2
    text = capsys.readouterr().err
    assert "--prot" in text
    assert "--port" in text


def test_an_error_becomes_one_line_and_its_exit_code(monkeypatch, capsys):
    assert exit_code(monkeypatch, "info", "no.pt") == 3
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert "no.pt" in streams.err
    assert streams.err.count("\n") == 1


def test_an_interrupt_is_quiet(monkeypatch, capsys):
    def interrupted(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr("dpserver.models.checkpoint.read", interrupted)
    assert exit_code(monkeypatch, "info", "w.pt") == 130
    assert capsys.readouterr() == ("", "")


def test_our_own_bugs_keep_their_traceback(monkeypatch):
    def broken(_path):
        raise ZeroDivisionError

    monkeypatch.setattr("dpserver.models.checkpoint.read", broken)
    monkeypatch.setattr(sys, "argv", ["dpserver", "info", "w.pt"])
    with pytest.raises(ZeroDivisionError):
        app.main()


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "dpserver", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"dpserver {__version__}\n"


@pytest.mark.parametrize("module", ["torch", "numpy", "pydantic", "matplotlib"])
def test_the_help_loads_nothing_heavy(module):
    code = f"import sys, dpserver.cli.app; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_error_classes_reach_the_shell(monkeypatch, capsys):
    def refuse(_path):
        raise ModelFileError("of another kind")

    monkeypatch.setattr("dpserver.models.checkpoint.read", refuse)
    assert exit_code(monkeypatch, "info", "w.pt") == 3
    assert capsys.readouterr().err == "error: of another kind\n"


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_unless_the_user_wants_otherwise(monkeypatch, given, used):
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    else:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    exit_code(monkeypatch, "--version")
    assert os.environ["OMP_WAIT_POLICY"] == used


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["status", "--json"]])
def test_a_full_disk_behind_standard_output_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dpserver", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, "error: cannot write to standard output: No space left on device\n")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["status", "--json"]])
def test_a_reader_that_has_left_is_no_news(arguments):
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "dpserver", *arguments], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    "fault", [FileNotFoundError(2, "No such file or directory", "gone"), OSError(28, "No space left on device")]
)
def test_a_fault_of_another_kind_is_not_taken_for_the_output(monkeypatch, fault):
    def broken(_path):
        raise fault

    monkeypatch.setattr("dpserver.models.checkpoint.read", broken)
    monkeypatch.setattr(sys, "argv", ["dpserver", "info", "w.pt"])
    with pytest.raises(OSError, match=fault.strerror):
        app.main()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_the_exit_code_says_it_where_nobody_can_be_told():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "dpserver", "info", "/nonexistent"], stderr=full, check=False)
    assert done.returncode == 3
