import pytest

from dpserver import errors
from dpserver.cli import console


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ConfigError, 2),
        (errors.ModelFileError, 3),
        (errors.DataError, 4),
        (errors.StructureError, 4),
        (errors.DeviceError, 5),
        (errors.RemoteProtocolError, 1),
        (errors.DPServerError, 1),
    ],
)
def test_each_error_has_its_exit_code(kind, code):
    assert console.exit_code(kind("why")) == code


def test_a_child_class_has_the_code_of_its_parent():
    class NoSuchKey(errors.ConfigError):
        pass

    assert console.exit_code(NoSuchKey("why")) == 2


def test_an_error_is_one_line_without_markup(capsys):
    console.show_error(errors.ConfigError("model/[bold]type\n  must be one of " + "se_e2_a, " * 30))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: model/[bold]type must be one of se_e2_a, se_e2_a,")
    assert err.count("\n") == 1
