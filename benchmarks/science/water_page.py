"""The page of the water, written from its results."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from benchmarks.science.analysis import deviation
from benchmarks.science.common import WATER, Record
from benchmarks.science.presentation import (
    NOT_MEASURED,
    Claim,
    holds,
    new_figure,
    number,
    origin,
    quick_note,
    save_figure,
    table,
)
from dpserver.frames import Floats
from dpserver.models import checkpoint

TITLE: Final = "Water"
PAPER_FORCE: Final = 40.4  # meV/Å
_NAMES: Final = {"soap": "dpserver, SOAP", "adam": "dpserver, Adam", "peer": "DeePMD-kit {}, Adam"}
_COLOURS: Final = {"se_e2_a": "#0072b2", "loc_frame": "#d55e00"}
_STYLES: Final = {"soap": "-", "adam": "--", "peer": ":"}
_LIQUIDS: Final = {
    "liquid_300": ("300 K", "#0072b2"),
    "liquid_330": ("330 K", "#d55e00"),
    "liquid_300_beads": ("300 K, 8 beads", "#009e73"),
    "liquid_300_loc_frame": ("300 K, loc_frame", "#cc79a7"),
}
_PAIRS: Final = ("OO", "OH", "HH")
_BONDS: Final = {"OO": 2.0, "OH": 1.3, "HH": 1.9}  # Å; g(r) is compared from here on


def page(found: dict[str, Record]) -> str:
    """The page."""
    trained = {name: r for name, r in found.items() if "descriptor" in r["settings"]}
    whole = {name: r for name, r in trained.items() if len(r["settings"]["systems"]) > 1}
    fewer = {name: r for name, r in trained.items() if r["settings"]["way"] == "soap" and not name.endswith("_long")}
    text = [
        """## What the models learn

`loc_frame` with the network of the 2018 paper (16 O + 32 H with full and 30 O + 60 H with radial information, nets of
240-120-60-30-10, cutoff 6 Å; `examples/water/loc_frame.json`) and `se_e2_a` (`examples/water/train.json`), trained on
the 320 frames of data_0 to data_2 of DeePMD-kit's example, tested on the 80 of data_3. The rate decays from 10⁻³ to
10⁻⁶ for Adam and as in these files for SOAP. DeePMD-kit has the same input, its TensorFlow backend in double precision;
its frozen model was tested by `dpserver test`, which computes its energies to 10⁻¹⁰.

Every model was served by the daemon after its training; the last column is the error of forces that came over the
socket.
"""
    ]
    if whole:
        text.append(f"![Learning curves]({_curves(whole, fewer)})\n")
        shipped = found.get("shipped")
        text.append(_errors_table(whole, shipped))
        text.append(
            f"\nThe paper has {PAPER_FORCE} meV/Å for liquid water, by loc_frame trained on far larger sets. The model "
            "that is shipped learnt from the same 320 frames and as many of "
            "[close contacts](../water.md#close-contacts).\n"
        )
        text.append(origin(*whole.values(), *(() if shipped is None else (shipped,))))
    if len(fewer) > 1:
        text += ["### With fewer frames\n", _frames_table(fewer), "\n" + origin(*fewer.values())]
    return "\n".join([*text, _liquid_text(found)])


def _shipped_card() -> tuple[str, str]:
    """By what and in how many steps the shipped model was trained, as its file says."""
    card = checkpoint.read(WATER / "w.pt")["training"]
    return f"dpserver, {card['optimizer'].upper()}: `w.pt`", f"{card['step']:,}"


def _errors_table(records: dict[str, Record], shipped: Record | None) -> str:
    trained = [
        (r["settings"]["descriptor"], _NAMES[r["settings"]["way"]].format(r.get("peer_version", "")),
         f"{r['settings']['steps']:,}", r)
        for r in _ordered(records)
    ]  # fmt: skip
    if shipped is not None:
        trained.append(("se_e2_a", *_shipped_card(), shipped))
    rows = [
        (
            descriptor,
            way,
            steps,
            f"{r['energy_mae']:.2f}",
            f"{r['energy_rmse']:.2f}",
            f"{r['force_mae']:.1f}",
            f"{r['force_rmse']:.1f}",
            f"{r['served_force_rmse']:.1f} ({r['served_frames']} frames)",
        )
        for descriptor, way, steps, r in trained
    ]
    header = ("descriptor", "trained by", "steps", "energy MAE, meV/atom", "RMSE", "force MAE, meV/Å", "RMSE",
              "force RMSE by the daemon")  # fmt: skip
    return table(header, rows)


def _frames_table(records: dict[str, Record]) -> str:
    rows = [
        (r["settings"]["descriptor"], r["n_training_frames"], f"{r['energy_rmse']:.2f}", f"{r['force_rmse']:.1f}")
        for r in sorted(records.values(), key=lambda r: (r["settings"]["descriptor"], r["n_training_frames"]))
    ]
    return table(("descriptor", "training frames", "energy RMSE, meV/atom", "force RMSE, meV/Å"), rows)


def _ordered(records: dict[str, Record]) -> list[Record]:
    ways = list(_NAMES)

    def order(record: Record) -> tuple[str, int, int]:
        of = record["settings"]
        return of["descriptor"], ways.index(of["way"]), of["steps"]

    return sorted(records.values(), key=order)


def _curves(whole: dict[str, Record], fewer: dict[str, Record]) -> str:
    figure, panels = new_figure(columns=2)
    left, right = panels[0]
    steps = min(r["settings"]["steps"] for r in whole.values())
    for r in _ordered(whole):
        s = r["settings"]
        if s["way"] == "soap" and s["steps"] > steps:
            continue  # too far to the right
        label = f"{s['descriptor']}, {_NAMES[s['way']].format(r.get('peer_version', ''))}"
        left.plot(
            r["curve"]["step"],
            r["curve"]["force_rmse"],
            _STYLES[s["way"]],
            color=_COLOURS[s["descriptor"]],
            label=label,
        )
    for descriptor, colour in _COLOURS.items():
        mine = sorted(
            (r["n_training_frames"], r["force_rmse"])
            for r in fewer.values()
            if r["settings"]["descriptor"] == descriptor
        )
        if mine:
            right.plot(*zip(*mine, strict=True), "o-", color=colour, ms=4, label=f"{descriptor}, SOAP")
    for axes in (left, right):
        axes.axhline(PAPER_FORCE, color="0.6", lw=0.8, ls=(0, (4, 3)), label="the paper, far larger sets")
        axes.set(yscale="log", ylabel="force RMSE on data_3 (meV/Å)")
        axes.legend(fontsize=6.5)
    left.set(xlabel="steps")
    right.set(xlabel="training frames", xscale="log")
    return save_figure(figure, "water_training")


# The liquid.


def _liquid_text(found: dict[str, Record]) -> str:
    reference = found.get("reference")
    liquids = {name: found[name] for name in _LIQUIDS if name in found}
    intro = """## The liquid

i-PI moves 64 molecules through the daemon (stochastic velocity rescaling; PILE-G for the beads; steps of 0.5 fs),
beside the 400 DFT frames of the data. The first tenth of each run is left out. The repository of the data names neither
functional nor temperature; they are frames of classical nuclei. Neighbours in the angles O–O–O are those within the
radius in which an O has 4 neighbours on average in the DFT frames.

The `loc_frame` model, which has learnt nothing but the frames, knows no atoms that are much closer than in any of them.
"""
    if reference is None or not liquids:
        return intro + "\n" + origin(None)
    rows = [_agreement(name, r, reference) for name, r in liquids.items()]
    halves = [
        number(deviation(*_from_bond(pair, reference["halves"][0][f"g_{pair}"], reference["halves"][1][f"g_{pair}"])))
        for pair in _PAIRS
    ]
    radius = f"{reference['angle_radius']:.2f}"
    halved = _angle_deviation(reference["halves"][0], reference["halves"][1])
    rows.append(("DFT, first 240 frames beside the other 160", "–", *halves, number(halved), "–", "–"))
    text = [
        intro,
        f"![Structure of the liquid]({_structure(reference, liquids)})\n",
        "Mean absolute difference of g(r) from that of the DFT frames, beyond the bonds, relative to its mean there; "
        f"the same for the angles within {radius} Å:\n",
        table(("run", "length, ps", "g_OO", "g_OH", "g_HH", "O–O–O", "neighbours of O", "energy, meV/atom"), rows),
        "\nThe last column is the mean potential energy of the run less that of the DFT frames of data_3, both by the "
        "model." + _temperature(liquids) + "\n",
        origin(reference, *liquids.values()),
    ]  # fmt: skip
    return "\n".join(text)


def _temperature(liquids: dict[str, Record]) -> str:
    """At which temperature the dynamics has the energy of the DFT frames, by two classical runs."""
    if not {"liquid_300", "liquid_330"} <= set(liquids):
        return ""
    cold, warm = (1e3 * _excess(liquids[name]) for name in ("liquid_300", "liquid_330"))
    rise = (warm - cold) / 30.0
    if rise <= 0:
        return " The runs are too short to tell at which temperature the energies would be the same."
    return f" A straight line through the two classical runs has the energy of the frames at {300 - cold / rise:.0f} K."


def _excess(record: Record) -> float:
    """eV/atom."""
    return float(record["potential_ev_per_atom"] - record["dft_frames_ev_per_atom"])


def _agreement(name: str, record: Record, reference: Record) -> tuple[Any, ...]:
    return (
        f"{_LIQUIDS[name][0]} (`{record['settings']['model']}`)",
        number(record["length_ps"]),
        *(number(deviation(*_from_bond(p, record[f"g_{p}"], reference[f"g_{p}"]))) for p in _PAIRS),
        number(_angle_deviation(record, reference)),
        f"{record['coordination']:.2f}",
        number(1e3 * _excess(record), 3, 1e3 * record["potential_error"]),
    )


def _from_bond(pair: str, first: list[float], second: list[float]) -> tuple[Floats, Floats]:
    """Two curves g(r), beyond the bond and as far as both go."""
    n = min(len(first), len(second))
    r = 0.04 * (np.arange(n) + 0.5)
    kept = r > _BONDS[pair]
    return np.asarray(first[:n], dtype=np.float64)[kept], np.asarray(second[:n], dtype=np.float64)[kept]


def _angle_deviation(first: Record, second: Record) -> float:
    return deviation(np.array(first["angles"]), np.array(second["angles"]))


def _structure(reference: Record, liquids: dict[str, Record]) -> str:
    figure, panels = new_figure(columns=2, rows=2, size=(7.4, 5.2))
    for pair, axes in zip(_PAIRS, panels.flat, strict=False):
        curves = [(reference, "DFT frames", "0.55"), *((r, *_LIQUIDS[name]) for name, r in liquids.items())]
        for record, label, colour in curves:
            g = np.array(record[f"g_{pair}"])
            r = record["bin"] * (np.arange(len(g)) + 0.5)
            if record is reference:
                axes.fill_between(r, g, color=colour, alpha=0.3, lw=0, label=label)
            else:
                axes.plot(r, g, color=colour, lw=1, label=label)
        beyond = np.array(reference[f"g_{pair}"])[int(_BONDS[pair] / reference["bin"]) :]
        axes.set(xlim=(0.7, 6.2), ylim=(0, 1.4 * beyond.max()), xlabel="r (Å)", ylabel=f"$g_\\mathrm{{{pair}}}$")
    axes = panels.flat[3]
    for record, label, colour in [(reference, "DFT frames", "0.55"), *((r, *_LIQUIDS[n]) for n, r in liquids.items())]:
        p = np.array(record["angles"])
        theta = 180 / len(p) * (np.arange(len(p)) + 0.5)
        if record is reference:
            axes.fill_between(theta, p, color=colour, alpha=0.3, lw=0, label=label)
        else:
            axes.plot(theta, p, color=colour, lw=1, label=label)
    axes.set(xlim=(30, 180), ylim=(0, None), xlabel="angle O–O–O (degrees)", ylabel="probability (1/degree)")
    panels.flat[0].legend(fontsize=7)
    return save_figure(figure, "water_structure")


# The index.


def answered(found: dict[str, Record]) -> dict[str, str]:
    """How the daemon has answered for each model; empty where it has not."""
    lines = {}
    for descriptor in _COLOURS:
        trained = [r for r in found.values() if r["settings"].get("descriptor") == descriptor]
        served = [r for r in trained if r.get("served_frames")]
        frames = {r["served_frames"] for r in served}
        lines[descriptor] = f"{len(served)} of {len(trained)} trainings, {max(frames)} frames each" if served else ""
    shipped = [f"{found['shipped']['served_frames']} frames"] if "shipped" in found else []
    runs = [r for name, r in found.items() if name in _LIQUIDS]
    lines["`w.pt`"] = " and ".join([*shipped, *([f"{len(runs)} dynamics of i-PI"] if runs else [])])
    return lines


def claims(found: dict[str, Record]) -> list[Claim]:
    """Lines of the index."""
    return [
        _accuracy(found.get("loc_frame_soap_long"), "loc_frame"),
        _accuracy(found.get("shipped"), "se_e2_a"),
        _equal_steps(found),
        _liquid(found),
    ]


def _accuracy(record: Record | None, descriptor: str) -> Claim:
    text = (
        f"Ab initio accuracy for liquid water: {descriptor}, forces within 40.4 meV/Å (the paper's, of its loc_frame)"
    )
    if record is None:
        return Claim(text, NOT_MEASURED)
    is_shipped = "steps" not in record["settings"]
    steps = _shipped_card()[1] if is_shipped else f"{record['settings']['steps']:,}"
    contacts = ", as many of close contacts," if is_shipped else ""
    return Claim(
        text,
        f"{record['force_rmse']:.1f} meV/Å, {record['energy_rmse']:.2f} meV/atom",
        f"320 training frames{contacts} and {steps} steps by SOAP; the paper's sets are far larger"
        + quick_note(record),
        holds(record["force_rmse"] <= PAPER_FORCE, record),
    )


def _equal_steps(found: dict[str, Record]) -> Claim:
    text = "With equal input, frames and steps training ends where DeePMD-kit's does: forces within 15 %"
    pairs = [(found.get(f"{d}_adam"), found.get(f"{d}_peer"), d) for d in _COLOURS]
    known = [(ours, peer, d) for ours, peer, d in pairs if ours is not None and peer is not None]
    if not known:
        return Claim(text, NOT_MEASURED, "needs an environment with DeePMD-kit, DPSERVER_PEER")
    return Claim(
        text,
        "; ".join(
            f"{d}: {ours['force_rmse']:.1f} and {peer['force_rmse']:.1f} meV/Å, "
            f"{ours['energy_rmse']:.2f} and {peer['energy_rmse']:.2f} meV/atom"
            for ours, peer, d in known
        ),
        "one training each; other random numbers, and mixed precision beside double"
        + quick_note(*(r for k in known for r in k[:2])),
        holds(
            all(ours["force_rmse"] <= 1.15 * peer["force_rmse"] for ours, peer, _ in known),
            *(r for k in known for r in k[:2]),
        ),
    )


def _liquid(found: dict[str, Record]) -> Claim:
    text = "Dynamics with the model gives the structure of the liquid"
    reference, liquid = found.get("reference"), found.get("liquid_330")
    if reference is None or liquid is None:
        return Claim(text, NOT_MEASURED)
    by_pair = {p: deviation(*_from_bond(p, liquid[f"g_{p}"], reference[f"g_{p}"])) for p in _PAIRS}
    halves = {p: deviation(*_from_bond(p, *(h[f"g_{p}"] for h in reference["halves"]))) for p in _PAIRS}
    return Claim(
        text,
        ", ".join(f"g_{p} within {100 * d:.1f} %" for p, d in by_pair.items()) + " at 330 K",
        "the halves of the DFT frames differ by "
        + ", ".join(f"{100 * d:.1f} %" for d in halves.values())
        + "; the temperature of the frames is not known; w.pt of examples/water"
        + quick_note(liquid),
        holds(all(by_pair[p] <= max(0.05, 2 * halves[p]) for p in _PAIRS), liquid),
    )
