import subprocess
import sys

import pytest

import dpserver


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; sys.stdout.write(' '.join({{m.partition('.')[0] for m in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_import_alone_loads_neither_torch_nor_numpy():
    assert not {"torch", "numpy"} & loaded_after("import dpserver")


def test_frames_do_not_load_torch():
    assert "torch" not in loaded_after("from dpserver import Frames, ForceResult")


@pytest.mark.parametrize("name", dpserver.__all__)
def test_every_public_name_can_be_used(name):
    assert getattr(dpserver, name) is not None
    assert name in dir(dpserver)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'dpserver' has no attribute 'lod'"):
        _ = dpserver.lod
