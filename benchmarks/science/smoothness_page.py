"""The page of the smoothness, written from its results."""

from __future__ import annotations

from typing import Final

import numpy as np

from benchmarks.science.analysis import power_law
from benchmarks.science.common import Record
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

TITLE: Final = "Smoothness"
PRECISIONS: Final = ("double", "mixed")
LIMIT: Final = 0.1  # meV/atom/ns at 0.25 fs in double precision
_EVENTS: Final = {
    "cutoff": "a neighbour crosses the cutoff",
    "order": "two neighbours change places",
    "axes": "a neighbour and an axis do",
}
_COLOURS: Final = {"se_e2_a": "#0072b2", "loc_frame": "#d55e00"}


def page(found: dict[str, Record]) -> str:
    """The page."""
    return "\n".join([_jumps(found), _paths(found), _drift(found)])


def _jumps(found: dict[str, Record]) -> str:
    records = {d: found[f"events_{d}"] for d in _COLOURS if f"events_{d}" in found}
    text = [
        """## Single events

One atom of 64 waters moves by 4·10⁻⁴ Å in all, and on its way exactly one thing happens among all pairs of distances: a
neighbour crosses the cutoff of 6 Å of a centre, two neighbours change places in the order of a centre, or two do of
which one is an axis of the local frame. The jump is what is left of ΔE between two of the points when the work of the
forces is taken away. Atoms are moved out of thermal places to meet an event, by up to 0.1 Å, and 0.6 Å for the axes.
`se_e2_a` knows neither order nor axes; the same paths are shown for both.
"""
    ]
    if records:
        n = next(iter(records.values()))["settings"]["n_events"]
        text.append(f"![Energies along the paths]({_events_picture(records)})\n")
        text.append(
            table(
                ("", *(f"{_EVENTS[k]}, meV" for k in _EVENTS)),
                [(d, *(_median_and_most(r[k]["jumps_mev"]) for k in _EVENTS)) for d, r in records.items()],
            )
        )
        text.append(f"\nMedians of {n} events of each kind, double precision.\n")
    return "\n".join([*text, origin(*records.values())])


def _median_and_most(jumps: list[float]) -> str:
    return f"{number(float(np.median(jumps)))} (at most {number(max(jumps))})"


def _events_picture(records: dict[str, Record]) -> str:
    figure, panels = new_figure(columns=len(_EVENTS), size=(7.4, 2.6))
    for kind, axes in zip(_EVENTS, panels[0], strict=True):
        for descriptor, record in records.items():
            shown = record[kind]["shown"]
            axes.plot(1e4 * np.array(shown["t_angstrom"]), shown["energy_mev"], ".-", ms=2.5, lw=0.6,
                      color=_COLOURS[descriptor], label=descriptor)  # fmt: skip
        axes.set(title=_EVENTS[kind], xlabel="path (10⁻⁴ Å)")
        axes.title.set_fontsize(8)
    panels[0][0].set_ylabel("energy less a straight line (meV)")
    panels[0][0].legend()
    return save_figure(figure, "smoothness_events")


def _paths(found: dict[str, Record]) -> str:
    records = {d: found[f"path_{d}"] for d in _COLOURS if f"path_{d}" in found}
    rows = [
        (
            d,
            number(r["largest_jump_mev"]),
            number(r["median_mev"]),
            f"{r['jumps_over_0.1_mev']} of {r['settings']['points'] - 1}",
        )
        for d, r in records.items()
    ]
    return "\n".join([
        "## All atoms\n",
        "All 192 atoms on straight lines in random directions, 0.05 Å on average from the first to the last point; the "
        "same measure between neighbouring points.\n",
        table(("", "largest, meV", "median, meV", "over 0.1 meV"), rows) if rows else "",
        origin(*records.values()),
    ])  # fmt: skip


def _drift(found: dict[str, Record]) -> str:
    records = _runs(found)
    text = [
        """## Energy conservation

64 waters at constant energy by i-PI through the daemon, from velocities of 300 K; the first tenth of each run is left
out, in which they and the positions find their balance. The drift is the slope of the straight line through the
conserved quantity, its error that of ten blocks left out in turn; the fluctuation is what is left of it. For a smooth
energy the fluctuation goes with the square of the time step (velocity Verlet); a jump of the energy is not seen by the
forces, and each adds its own to the conserved quantity. On a CPU `single` precision is computed as `mixed` is, and has
no runs of its own.
"""
    ]
    if records:
        text.append(f"![Conserved quantity]({_drift_picture(records)})\n")
        header = ("descriptor", "precision", "time step, fs", "length, ps", "drift, meV/atom/ns",
                  "fluctuation, meV/atom", "temperature, K")  # fmt: skip
        text.append(
            table(
                header,
                [
                    (
                        r["settings"]["descriptor"], r["settings"]["precision"], r["settings"]["timestep_fs"],
                        r["settings"]["length_ps"], number(r["drift_mev_per_atom_ns"], 3, r["drift_standard_error"]),
                        number(r["fluctuation_mev_per_atom"], 2), f"{r['mean_temperature_k']:.0f}",
                    )
                    for r in records
                ],
            )
        )  # fmt: skip
        text.append(_order(records))
    return "\n".join([*text, origin(*records)])


def _runs(found: dict[str, Record]) -> list[Record]:
    runs = [r for name, r in found.items() if name.startswith("nve_")]

    def place(record: Record) -> tuple[bool, int, float]:
        s = record["settings"]
        return s["descriptor"] != "se_e2_a", PRECISIONS.index(s["precision"]), s["timestep_fs"]

    return sorted(runs, key=place)


def _order(records: list[Record]) -> str:
    """How drift and fluctuation go with the time step, for se_e2_a in double precision."""
    smooth = [r for r in records if r["settings"]["descriptor"] == "se_e2_a" and r["settings"]["precision"] == "double"]
    if len(smooth) < 2:
        return ""
    dt = np.array([r["settings"]["timestep_fs"] for r in smooth])
    fluctuation = power_law(dt, np.array([r["fluctuation_mev_per_atom"] for r in smooth])).value
    certain = [r for r in smooth if abs(r["drift_mev_per_atom_ns"]) > 3 * r["drift_standard_error"]]
    text = (
        f"\nIn double precision the fluctuation of se_e2_a goes with the time step to the power of {fluctuation:.2f}. "
    )
    if len(certain) < 2:
        return (
            text + "Drifts are not larger than three times their errors at two time steps, so that no power is given.\n"
        )
    drift = power_law(
        np.array([r["settings"]["timestep_fs"] for r in certain]),
        np.array([abs(r["drift_mev_per_atom_ns"]) for r in certain]),
    ).value
    return text + f"The drift, where it is larger than three times its error, goes with the power of {drift:.2f}.\n"


def _drift_picture(records: list[Record]) -> str:
    kinds = [("se_e2_a", "double"), ("se_e2_a", "mixed"), ("loc_frame", "double")]
    shown = {(r["settings"]["descriptor"], r["settings"]["precision"]) for r in records}
    kinds = [kind for kind in kinds if kind in shown]
    figure, panels = new_figure(columns=len(kinds), size=(3.2 * len(kinds), 2.8))
    # The longest time step fluctuates most, and is drawn first.
    for r in sorted(records, key=lambda r: -r["settings"]["timestep_fs"]):
        s, curve = r["settings"], r["curve"]
        colour = {0.25: "#0072b2", 0.5: "#009e73", 1.0: "#e69f00"}[s["timestep_fs"]]
        axes = panels.flat[kinds.index((s["descriptor"], s["precision"]))]
        label = f"{s['timestep_fs']} fs"
        axes.plot(curve["time_ps"], curve["conserved_mev_per_atom"], color=colour, lw=0.8, label=label)
    for axes, kind in zip(panels.flat, kinds, strict=True):
        axes.set(title=", ".join(kind), xlabel="time (ps)", ylabel="change (meV/atom)")
        axes.legend(ncols=3, columnspacing=0.8, handlelength=1.2)
    return save_figure(figure, "smoothness_drift")


# The index.


def answered(found: dict[str, Record]) -> dict[str, str]:
    """How the daemon has answered for each model; empty where it has not."""
    counts = {d: sum(r["settings"]["descriptor"] == d for r in _runs(found)) for d in _COLOURS}
    return {d: f"{n} dynamics of i-PI" if n else "" for d, n in counts.items()}


def claims(found: dict[str, Record]) -> list[Claim]:
    """Lines of the index."""
    return [_smooth_claim(found), _rough_claim(found), _drift_claim(found), _order_claim(found)]


def _smooth_claim(found: dict[str, Record]) -> Claim:
    record = found.get("events_se_e2_a")
    text = "se_e2_a has no jumps where neighbours cross the cutoff or change places"
    if record is None:
        return Claim(text, NOT_MEASURED)
    worst = max(max(record[kind]["jumps_mev"]) for kind in _EVENTS)
    return Claim(
        text,
        f"at most {number(worst)} meV",
        "the rounding of a total of -30,000 eV is 4·10⁻⁹ meV" + quick_note(record),
        holds(worst < 1e-5, record),
    )


def _rough_claim(found: dict[str, Record]) -> Claim:
    record = found.get("events_loc_frame")
    text = "loc_frame, the paper's, jumps (a known drawback)"
    if record is None:
        return Claim(text, NOT_MEASURED)
    medians = {k: float(np.median(record[k]["jumps_mev"])) for k in _EVENTS}
    result = ", ".join(f"{_EVENTS[k]}: {number(m, 2)} meV" for k, m in medians.items())
    return Claim(
        text,
        result + " (medians)",
        "a model of 320 frames and a short training" + quick_note(record),
        holds(any(m > 1e-3 for m in medians.values()), record),
    )


def _drift_claim(found: dict[str, Record]) -> Claim:
    record, rough = found.get("nve_se_e2_a_double_0.25"), found.get("nve_loc_frame_double_0.25")
    text = f"se_e2_a drifts by no more than {LIMIT} meV/atom/ns at 0.25 fs in double precision"
    if record is None:
        return Claim(text, NOT_MEASURED)
    result = number(record["drift_mev_per_atom_ns"], 3, record["drift_standard_error"])
    beside = (
        ""
        if rough is None
        else f"; loc_frame {number(rough['drift_mev_per_atom_ns'], 3, rough['drift_standard_error'])}"
    )
    # Too short a run tells nothing: the limit must lie outside the error.
    drift, error = abs(record["drift_mev_per_atom_ns"]), record["drift_standard_error"]
    is_certain = (error < LIMIT / 2 or drift - LIMIT > 3 * error) and not record["is_quick"]
    return Claim(
        text,
        f"{result}{beside}",
        f"{record['settings']['length_ps']} ps"
        + ("" if is_certain else ", too short to tell")
        + quick_note(*(r for r in (record, rough) if r)),
        drift <= LIMIT if is_certain else None,
    )


def _order_claim(found: dict[str, Record]) -> Claim:
    runs = [found.get(f"nve_se_e2_a_double_{dt}") for dt in (0.25, 0.5, 1.0)]
    text = "The error of the conserved quantity goes with the square of the time step"
    known = [r for r in runs if r is not None]
    if len(known) < 3:
        return Claim(text, NOT_MEASURED)
    dt = np.array([r["settings"]["timestep_fs"] for r in known])
    exponent = power_law(dt, np.array([r["fluctuation_mev_per_atom"] for r in known])).value
    result = f"fluctuation to the power of {exponent:.2f}"
    return Claim(
        text,
        result,
        "drifts are small; the fluctuation is what has an order" + quick_note(*known),
        holds(abs(exponent - 2) < 0.2, *known),
    )
