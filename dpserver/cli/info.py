"""`dpserver info`: what a model file holds, as a card for people or JSON for programs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpserver.cli import console

if TYPE_CHECKING:
    from dpserver.kernels.tables import TableError
    from dpserver.models.committee import Committee
    from dpserver.models.kept_tables import KeptTables
    from dpserver.models.potential import Potential


def info(
    model: Annotated[Path, typer.Argument(help="Model file.", metavar="w.pt", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a card.")] = False,
) -> None:
    """Show what a model file holds: species, network, training, errors. A file that cannot be used is refused."""
    from dpserver.models import checkpoint, gdml_file
    from dpserver.models.compilation import table_error
    from dpserver.models.potential import Potential

    if gdml_file.recognises(model):
        _show_gdml(model, as_json=as_json)
        return
    values = checkpoint.read(model)
    described = {"file": str(model), "bytes": model.stat().st_size, **describe(values)}
    if "members" in described:
        committee = checkpoint.restore_all(values, str(model))
        described |= describe_committee(committee, described["members"])
    for k, member in enumerate(checkpoint.members_of(values)):
        restored = checkpoint.restore_model(member, str(model))
        described.get("members", [described])[k]["tables"] = (
            describe_tables(restored.tables, table_error(restored)) if isinstance(restored, Potential) else None
        )
    if as_json:
        typer.echo(json.dumps(described, indent=2, allow_nan=False))
    else:
        _print_card(described)


def _show_gdml(path: Path, *, as_json: bool) -> None:
    """Show what a model of the package `sgdml` holds."""
    from dpserver.models.gdml import describe

    described = {"file": str(path), "bytes": path.stat().st_size, **describe(path)}
    if as_json:
        typer.echo(json.dumps(described, indent=2, allow_nan=False))
        return
    about = described["about"]
    rows = [
        ("file", f"{path}  ({described['bytes'] / 1e6:.2f} MB, sGDML)"),
        ("order of atoms", f"{' '.join(described['template'])}, and no other"),
        ("closest (Å)", _distances(described["species"], described["min_distance"])),
        ("farthest (Å)", f"{described['reach']:.3f}"),
        ("trained on", f"{described['n_train']} structures{described['cell']}"),
        ("permutations", f"{described['n_perms']} of like atoms"),
        ("units", f"{about['r_unit']}, {about['e_unit']}"),
        *((name.replace("_", " "), about[name]) for name in sorted(about) if not name.endswith("_unit")),
    ]
    _print_rows(rows, path.name)


def describe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the dict of a model file into JSON-able values.

    Args:
        values: what `checkpoint.read` returns.

    Returns:
        The same keys, tensors turned into nested lists, and numbers JSON has no name for into null; of `state` only
        the shape of each tensor, and the sum of their elements beside it as `n_parameters`; charges of the species,
        where it has any, as `charges`; no tables. The `members` of a committee are described likewise.
    """
    if "members" in values:
        return {**values, "members": [describe(member) for member in values["members"]]}
    state = values["state"]
    described = {key: _plain(value) for key, value in values.items() if key not in ("state", "tables")}
    described["n_parameters"] = sum(tensor.numel() for tensor in state.values())
    if (charges := state.get("electrostatics.charges")) is not None:
        described["charges"] = dict(zip(values["species"], _plain(charges), strict=True))
    described["state"] = {name: list(tensor.shape) for name, tensor in state.items()}
    return described


def describe_tables(kept: KeptTables | None, error: TableError | None) -> dict[str, Any] | None:
    """What tables a model is evaluated with: their errors, and what those in the file, if any, were made for.

    Args:
        kept: in the file.
        error: of tables as they are made by default; None where there are none.
    """
    if kept is None:
        return None if error is None else asdict(error)
    return {
        **asdict(kept.error),
        "kept": {
            "tolerance": kept.tolerance,
            "intervals": sum(len(pair.intervals.coefficients) for pair in kept.pairs),
            "fingerprint": kept.fingerprint,
        },
    }


def describe_committee(model: Potential | Committee, members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the members of a committee have in common, by the names it has for a single model."""
    return {
        "species": list(model.species),
        "template": None if model.template is None else list(model.template),
        "statistics": {"min_distance": _plain(model.min_distance)},
        "n_parameters": sum(member["n_parameters"] for member in members),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _print_card(described: Mapping[str, Any]) -> None:
    members = described.get("members", [described])
    network, training = (_together([list(part(member)) for member in members]) for part in (_network, _training))
    _print_rows([*_about(described), *network, ("", ""), *training], Path(described["file"]).name)


def _print_rows(rows: Sequence[tuple[str, str]], title: str) -> None:
    from rich import box
    from rich.panel import Panel
    from rich.table import Table

    card = Table(box=None, show_header=False, pad_edge=False)
    card.add_column(style="bold cyan", no_wrap=True)
    card.add_column(overflow="fold")
    for name, text in rows:
        card.add_row(name, text)
    bold = f"[bold]{title}[/bold]"
    console.out.print(Panel(card, title=bold, title_align="left", box=box.ROUNDED, expand=False))


def _together(members: Sequence[Sequence[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    """The rows of several members as one: a text that is the same for all once, else one line for each."""
    for name in dict.fromkeys(name for rows in members for name, _ in rows):
        texts = [dict(rows).get(name, "-") for rows in members]
        is_same = len(set(texts)) == 1
        yield name, texts[0] if is_same else "\n".join(f"{k + 1}: {text}" for k, text in enumerate(texts))


def _about(described: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines of the card about the file and what it is good for."""
    yield "file", f"{described['file']}  ({described['bytes'] / 1e6:.2f} MB, format {described['version']})"
    yield "species", " ".join(described["species"])
    yield "trained on", _composition(described["template"])
    yield "closest (Å)", _distances(described["species"], described["statistics"]["min_distance"])
    if "members" in described:
        yield "committee", f"{len(described['members'])} members, {described['n_parameters']:,} parameters together"


def _network(described: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines of the card about the network of one model."""
    model = described["config"]["model"]
    yield from _descriptor(model["descriptor"])
    yield from _fitting(model["fitting_net"])
    said = {"ener": "energy", "dipole": "dipole", "polar": "polarizability"}[model["fitting_net"]["type"]]
    excluded = {f"atoms without {said}": "atom_exclude_types", "pairs that are not seen": "pair_exclude_types"}
    for name, key in excluded.items():
        if types := model.get(key):
            yield name, ", ".join(_symbols(described["species"], entry) for entry in types)
    if (table := model.get("pair_table")) is not None:
        reach = f"from {table['rmin']:g} to {table['rcut']:g} Å"
        sums = "" if table.get("weights") is None else f", weights of net and table {_sizes(table['weights'])}"
        switch = "" if sums else f", switched from {model['sw_rmin']:g} to {model['sw_rmax']:g} Å"
        yield "pair energies", f"table {reach}{switch}{sums}"
    if (charges := model.get("electrostatics")) is not None:
        yield from _charges(described["charges"], charges)
    yield "parameters", f"{described['n_parameters']:,}"
    yield "precision", str(described["config"]["precision"])
    if (e := described.get("tables")) is not None:
        kept = f"; kept in the file, made for {e['kept']['tolerance']:.0e}" if "kept" in e else ""
        errors = f"deviate by {e['value']:.0e}, derivatives by {e['first']:.0e} and {e['second']:.0e}"
        yield "  its tables", errors + kept


def _charges(charges: Mapping[str, float], section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines about charges."""
    shown = ", ".join(f"{name} {charge:+.4g}" for name, charge in charges.items())
    yield "charges (e)", f"{shown}; Gaussians of {section['sigma']:g} Å"
    if (net := section.get("environment")) is not None:
        yield "  by neighbours", f"{net['scale']:g} e times a net {_sizes(net['neuron'])}, {net['activation_function']}"
    total = section["total_charge"]
    yield "  in all", "whatever they add up to" if total is None else f"{total:g}"
    yield "  their sum", f"{section['method']}, forces to {section['accuracy']:.0e}"


def _descriptor(section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines about a descriptor, and about each of a hybrid's."""
    if "list" in section:
        yield "descriptor", f"{section['type']} of {len(section['list'])}"
        for k, part in enumerate(section["list"]):
            for name, text in _descriptor(part):
                yield f" {k + 1} {name.strip()}", text
        return
    yield "descriptor", f"{section['type']}, cutoff {section['rcut']:g} Å"
    if "sel_a" in section:
        yield "  full / radial", f"{_sizes(section['sel_a'])} / {_sizes(section['sel_r'])}"
    if "radial" in section:
        angular = f", {len(section['angular'])} of triples" if section["angular"] else ""
        yield "  functions", f"{len(section['radial'])} of pairs{angular}, for each kind of neighbours"
    if "rcut_smth" in section:
        yield "  switch", f"from {section['rcut_smth']:g} Å"
        yield "  sel", _sizes(section["sel"])
        yield "  embedding net", f"{_sizes(section['neuron'])}, {section['activation_function']}"
    if "axis_neuron" in section:
        yield "  axis columns", str(section["axis_neuron"])
    if "attn_layer" in section:
        yield "  type embedding", f"{section['tebd_dim']}"
        yield "  attention", f"{section['attn_layer']} layers of {section['attn']}" if section["attn_layer"] else "none"


def _fitting(section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines about a fitting net."""
    kind = "" if section.get("type", "ener") == "ener" else f"{section['type']}, "
    yield "fitting net", f"{kind}{_sizes(section['neuron']) or 'linear'}, {section['activation_function']}"
    for name, key in (("frame", "numb_fparam"), ("atom", "numb_aparam")):
        if section.get(key):
            yield f"  parameters of each {name}", str(section[key])


def _symbols(species: Sequence[str], types: int | Sequence[int]) -> str:
    """A species, or a pair of them."""
    return species[types] if isinstance(types, int) else "-".join(species[t] for t in types)


def _sizes(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _composition(template: Sequence[str] | None) -> str:
    if template is None:
        return "no common order of atoms known"
    parts = ", ".join(f"{count} {symbol}" for symbol, count in Counter(template).items())
    return f"{len(template)} atoms per structure: {parts}"


def _training(described: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """One line per entry; those of a nested entry stand side by side."""
    for key, value in described["training"].items():
        if isinstance(value, Mapping):
            yield key, ", ".join(f"{name} {_text(item)}" for name, item in value.items() if item is not None)
        elif isinstance(value, list):
            yield key, ", ".join(map(_text, value))
        else:
            yield key, _text(value)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _distances(species: Sequence[str], distances: Sequence[Sequence[float | None]]) -> str:
    """The upper triangle of the table, as `O-O 2.380, O-H 0.860`."""
    pairs = combinations_with_replacement(range(len(species)), 2)
    return ", ".join(
        f"{species[a]}-{species[b]} {'unknown' if (d := distances[a][b]) is None else f'{d:.3f}'}" for a, b in pairs
    )
