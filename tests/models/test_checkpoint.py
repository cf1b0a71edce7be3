import errno
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import dpserver
from dpserver.errors import ConfigError, DeviceError, ModelFileError, OutputError
from dpserver.models import checkpoint
from dpserver.models.committee import Committee
from dpserver.models.potential import Potential
from tests import structures
from tests.models import committees
from tests.train import teacher


@pytest.fixture
def file(tmp_path) -> Path:
    potential = teacher.teacher()
    potential.template = ("O", "H", "H")
    potential.min_distance = np.array([[2.3, 0.9], [0.9, np.inf]])
    checkpoint.save(tmp_path / "w.pt", potential, {"step": 7})
    return tmp_path / "w.pt"


def altered(file: Path, **changes: object) -> Path:
    """The file with some entries replaced; None removes one."""
    values = {**torch.load(file, weights_only=True), **changes}
    torch.save({k: v for k, v in values.items() if v is not None}, file)
    return file


def test_what_is_saved_is_loaded(file):
    loaded, frames = dpserver.load(file, device="cpu"), structures.triclinic()
    expected = teacher.teacher().reference(frames)
    result = loaded.reference(frames)
    assert (result.energy == expected.energy).all()
    assert (result.forces == expected.forces).all()
    assert loaded.template == ("O", "H", "H")
    assert (loaded.min_distance == [[2.3, 0.9], [0.9, np.inf]]).all()
    assert checkpoint.read(file)["training"] == {"step": 7}


def test_precision_can_be_chosen_at_load(file):
    single = dpserver.load(file, device="cpu", precision="mixed")
    assert {p.dtype for p in single.parameters()} == {torch.float32}
    with pytest.raises(ConfigError, match="precision 'half' is unknown; expected one of double, mixed, single"):
        dpserver.load(file, precision="half")


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("is_zip", [True, False], ids=["torch", "pickle"])
def test_a_file_that_would_run_code_does_not(tmp_path, is_zip):
    file, evidence = tmp_path / "bomb.pt", tmp_path / "it-ran"
    values = {"format": "dpserver", "state": Bomb(evidence)}
    if is_zip:
        torch.save(values, file)
    else:
        file.write_bytes(pickle.dumps(values))
    with pytest.raises(ModelFileError, match="is not a dpserver model file"):
        dpserver.load(file)
    assert not evidence.exists()
    if is_zip:
        torch.load(file, weights_only=False)
    else:
        pickle.loads(file.read_bytes())
    assert evidence.exists(), "the bomb of this test is a dud"


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"model file .*none\.pt does not exist"):
        dpserver.load(tmp_path / "none.pt")
    with pytest.raises(ModelFileError, match="is not a file"):
        dpserver.load(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.pt").write_text("not a model")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("notes.txt", "not a model")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    for name in ("notes.pt", "archive.pt", "other.pt"):
        with pytest.raises(ModelFileError, match="is not a dpserver model file"):
            dpserver.load(tmp_path / name)


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95])
def test_a_truncated_file_is_refused(file, keep):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ModelFileError, match="is cut short or damaged; copy it again"):
        dpserver.load(file)


def test_a_single_wrong_bit_is_found(file):
    weights = next(iter(torch.load(file, weights_only=True)["state"].values())).numpy().tobytes()
    damaged = bytes([weights[0] ^ 1]) + weights[1:]
    file.write_bytes(file.read_bytes().replace(weights, damaged, 1))
    with pytest.raises(ModelFileError, match="is cut short or damaged; copy it again"):
        dpserver.load(file)


def test_a_file_that_cannot_be_opened_is_named(file, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(ModelFileError, match=r"cannot read the model file .*w\.pt: Permission denied"):
        checkpoint.read(file)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "w.pt").touch()
    with pytest.raises(ModelFileError, match=r"w\.pt is empty \(0 bytes\); copy it again"):
        dpserver.load(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "start"), [("graph.pb", b"\n\x0e"), ("model.pth", b"PK\x03\x04"), ("w.pt", b"\x89HDF\r\n\x1a\n")]
)
def test_a_model_of_deepmd_kit_is_recognised(tmp_path, name, start):
    (tmp_path / name).write_bytes(start + bytes(100))
    with pytest.raises(ModelFileError, match=rf"{name} cannot be imported as .* of DeePMD-kit's: it is .*damaged"):
        dpserver.load(tmp_path / name)
    torch.save({"model": torch.zeros(3)}, tmp_path / "frozen.pth")
    with pytest.raises(ModelFileError, match="is not a dpserver model file"):
        dpserver.load(tmp_path / "frozen.pth")


def test_a_compiled_program_is_not_run(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"w/{name}", pickle.dumps({}, protocol=2))
    with pytest.raises(ModelFileError, match=r"its data\.pkl holds no module"):
        dpserver.load(tmp_path / "w.pt")


def test_a_newer_version_is_refused(file):
    with pytest.raises(ModelFileError, match="has format version 99, this dpserver reads 1 and 2; update dpserver"):
        dpserver.load(altered(file, version=99))


def test_parts_that_do_not_fit_are_refused(file):
    state = torch.load(file, weights_only=True)["state"]
    first = next(name for name in state if name.startswith("fitting"))
    for changes, message in (
        ({"template": None, "statistics": None}, "is incomplete: it lacks template, statistics"),
        (
            {"state": {**state, first: torch.zeros(2, 2)}},
            rf"is inconsistent: {first} of its state has the shape \(2, 2\), its config asks for \(",
        ),
        ({"state": {**state, "extra": torch.zeros(2)}}, "its state holds extra, which its config has no place for"),
        ({"state": {}}, "its state lacks energy_bias, .* and [0-9]+ more$"),
        ({"state": {**state, first: 3}}, f"{first} of its state is no tensor of real numbers"),
        ({"config": {}}, "is inconsistent: its config lacks 'model' and 'precision'$"),
        ({"config": {"model": {"type_map": ["O"]}, "precision": "double"}}, r"config\.model\.descriptor: this key is"),
        ({"statistics": {}}, "its statistics lacks 'min_distance'"),
        ({"species": 3}, "its species is of type int, expected list"),
        ({"species": ["H", "O"]}, "species and statistics do not fit"),
        ({"state": {**state, first: torch.full_like(state[first], torch.nan)}}, "weights that are not finite"),
        ({"state": {**state, "energy_bias": torch.full((2,), torch.inf)}}, "weights that are not finite"),
    ):
        copy = file.with_name("altered.pt")
        copy.write_bytes(file.read_bytes())
        with pytest.raises(ModelFileError, match=message):
            dpserver.load(altered(copy, **changes))


def test_sizes_that_no_tensor_has_are_refused_before_memory_is_taken(file):
    """A net of these sizes would take terabytes, or for ever to make."""
    model, first = torch.load(file, weights_only=True)["config"]["model"], "descriptor.embedding.0.0.weight"
    excess = r"altered\.pt is inconsistent: its config asks for more than its state has, 876 numbers in .* again$"
    attentive = {"type": "se_atten", "sel": 9, "keeps_excluded_slots": True}
    endless_table = {"rmin": 0.5, "step": 0.1, "n_splines": 10**6, "rcut": 4.0, "weights": [1.0, 1.0]}
    for section, changes, message in (
        ("descriptor", {"neuron": [4, 10**9]}, excess),
        ("descriptor", {"neuron": [4] * 100_000}, excess),
        ("fitting_net", {"neuron": [10**9, 10**9]}, excess),
        ("fitting_net", {"neuron": [1] * 100_000}, excess),
        ("fitting_net", {"neuron": [10**30]}, excess),
        ("fitting_net", {"neuron": [10**400]}, "is inconsistent: "),
        ("fitting_net", {"numb_fparam": 10**12}, excess),
        ("fitting_net", {"numb_fparam": 20}, r"its state lacks fitting\.fparam_avg"),
        ("pair_table", endless_table, excess),
        ("descriptor", {**attentive, "tebd_dim": 10**9}, excess),
        ("descriptor", {**attentive, "attn_layer": 10**9}, "attn_layer: .* less than or equal to 100"),
    ):
        config = {"model": {**model, section: {**(model[section] or {}), **changes}}, "precision": "double"}
        copy = file.with_name("altered.pt")
        copy.write_bytes(file.read_bytes())
        with pytest.raises(ModelFileError, match=message):
            dpserver.load(altered(copy, config=config))
    state = torch.load(file, weights_only=True)["state"]
    endless = torch.zeros(1, dtype=torch.float64).expand(10**12)
    with pytest.raises(ModelFileError, match=f"{first} of its state says more numbers than it has"):
        dpserver.load(altered(file, state={**state, first: endless}))
    with pytest.raises(ModelFileError, match="species and statistics do not fit"):
        dpserver.load(altered(file, state=state, statistics={"min_distance": endless}))


def test_more_species_than_the_file_has_are_refused_before_memory_is_taken(file):
    """There is a net for each pair of them, and their distances are a table."""
    model = torch.load(file, weights_only=True)["config"]["model"]
    species = [f"X{k}" for k in range(1000)]
    descriptor = {**model["descriptor"], "sel": [1] * len(species), "type_one_side": False}
    config = {"model": {**model, "type_map": species, "descriptor": descriptor}, "precision": "double"}
    distances = torch.zeros(len(species), len(species), dtype=torch.float64)
    one = torch.zeros(1, 1, dtype=torch.float64)
    for changes, message in (
        ({}, "species and statistics do not fit its type_map"),
        ({"species": species}, "species and statistics do not fit its type_map"),
        ({"species": species, "statistics": {"min_distance": one.expand_as(distances)}}, "species and statistics do"),
        ({"species": species, "statistics": {"min_distance": distances}}, "more than its state has, 876 numbers"),
    ):
        copy = file.with_name("altered.pt")
        copy.write_bytes(file.read_bytes())
        with pytest.raises(ModelFileError, match=message):
            dpserver.load(altered(copy, config=config, **changes))


def test_numbers_that_many_tensors_share_count_once(file):
    """Else a file of some bytes could give every layer of an endless net the same numbers."""
    values = torch.load(file, weights_only=True)
    shared = torch.zeros(100_000, dtype=torch.float64)
    state = {**values["state"], **{f"fitting.0.{k}.weight": shared for k in range(100)}}
    model = values["config"]["model"]
    config = {**values["config"], "model": {**model, "fitting_net": {**model["fitting_net"], "neuron": [300] * 100}}}
    with pytest.raises(ModelFileError, match="more than its state has, 1005"):
        dpserver.load(altered(file, state=state, config=config))


def test_a_model_is_loaded_without_the_compiler_of_torch(file):
    """To import it takes longer than all the rest of a small model's way to its first forces."""
    script = (
        "import sys, dpserver\n"
        "from tests import structures\n"
        f"dpserver.load({str(file)!r}, device='cpu').evaluate(structures.triclinic())\n"
        "sys.stdout.write(' '.join({'torch._dynamo', 'torch._inductor', 'sympy'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_saving_is_all_or_nothing(file, monkeypatch):
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=f"cannot write {file}: No space left on device; make room"):
        checkpoint.save(file, teacher.teacher())
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == ["w.pt"]


def test_a_device_that_is_not_there_is_named(file):
    with pytest.raises(DeviceError, match="torch sees"):
        dpserver.load(file, device="cuda:99")
    with pytest.raises(DeviceError, match="device 'gpu' is unknown; expected auto, cpu, cuda"):
        dpserver.load(file, device="gpu")


# --- committees ------------------------------------------------------------------------------------------------------


@pytest.fixture
def members(tmp_path) -> list[Path]:
    files = [tmp_path / f"{seed}.pt" for seed in (1, 2, 3)]
    for seed, path in enumerate(files, 1):
        checkpoint.save(path, committees.member(seed), {"seed": seed})
    return files


def test_a_committee_is_saved_and_loaded(members, tmp_path):
    checkpoint.write(tmp_path / "w.pt", checkpoint.join(members))
    loaded, frames = dpserver.load(tmp_path / "w.pt", device="cpu"), structures.triclinic()
    assert isinstance(loaded, Committee)
    result = loaded.evaluate(frames)
    for k, file in enumerate(members):
        np.testing.assert_array_equal(result.committee.forces[k], dpserver.load(file, "cpu").evaluate(frames).forces)
    assert [m["training"]["seed"] for m in checkpoint.members_of(checkpoint.read(tmp_path / "w.pt"))] == [1, 2, 3]
    assert not any(p.requires_grad for m in loaded.members for p in m.parameters())
    mixed = dpserver.load(tmp_path / "w.pt", "cpu", "mixed")
    assert {p.dtype for m in mixed.members for p in m.parameters()} == {torch.float32}


def test_a_member_is_a_model_again(members, tmp_path):
    """What enters a committee is all of a model file, and nothing of a checkpoint that only a restart needs."""
    torch.save({**checkpoint.read(members[0]), "resume": {}}, members[0])
    values = checkpoint.join(members)
    (first, *_), single = checkpoint.members_of(values), checkpoint.read(members[0])
    assert set(first) == set(single) - {"resume"}
    assert checkpoint.members_of(single) == [single]
    checkpoint.write(tmp_path / "again.pt", first)
    assert isinstance(dpserver.load(tmp_path / "again.pt", "cpu"), Potential)


def test_a_committee_enters_another_member_by_member(members, tmp_path):
    checkpoint.write(tmp_path / "two.pt", checkpoint.join(members[:2]))
    values = checkpoint.join([tmp_path / "two.pt", members[2]])
    assert [m["training"]["seed"] for m in values["members"]] == [1, 2, 3]


def test_models_that_are_no_committee_are_refused_by_name(members, tmp_path):
    checkpoint.save(tmp_path / "swapped.pt", committees.member(4, species=("H", "O")))
    checkpoint.write(tmp_path / "two.pt", checkpoint.join(members[:2]))
    for files, message in (
        ([members[0], tmp_path / "swapped.pt"], r"swapped\.pt knows the species H O, .*1\.pt O H; .* same type_map"),
        ([members[0], members[1], members[0]], r"1\.pt holds the same weights as .*1\.pt; .* trained apart"),
        ([tmp_path / "two.pt", members[1]], r"2\.pt holds the same weights as member 2 of .*two\.pt"),
        (members[:1], "at least two models, got 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            checkpoint.join(files)
    with pytest.raises(ModelFileError, match="does not exist"):
        checkpoint.join([members[0], tmp_path / "none.pt"])


def test_committees_that_do_not_fit_are_refused(members):
    whole = checkpoint.join(members)
    first, second, _ = whole["members"]
    swapped = checkpoint.contents(committees.member(4, species=("H", "O")))
    for found, message in (
        ([], "its members are no list of models"),
        (None, "its members are no list of models"),
        ([first, 3], "its members are no list of models"),
        ([first, {**second, "state": {}}], "member 2 of .*w.pt is inconsistent: its state lacks"),
        ([first, {k: v for k, v in second.items() if k != "template"}], "member 2 of .* is incomplete: it lacks templ"),
        ([first, swapped], "is inconsistent: member 2 knows the species H O"),
    ):
        checkpoint.write(members[0].with_name("w.pt"), {**whole, "members": found})
        with pytest.raises(ModelFileError, match=message):
            dpserver.load(members[0].with_name("w.pt"))


def test_a_file_that_grows_when_it_is_unpacked_is_refused(file):
    with zipfile.ZipFile(file) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries.items():
            new.writestr(name, data)
    with pytest.raises(ModelFileError, match=r"is not a dpserver model file: its entry .*data\.pkl is compressed"):
        checkpoint.load(file)
