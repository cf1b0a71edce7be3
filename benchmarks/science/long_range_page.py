"""The page about long range, from the results."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

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

TITLE: Final = "Long range"
_NAMES: Final = {"short_range": "short range alone", "charges": "with charges"}
_COLOURS: Final = {"short_range": "#d55e00", "charges": "#0072b2"}
_RCUT: Final = 6.0
_PAPER_COST: Final = 2.0


def page(found: dict[str, Record]) -> str:
    """The page."""
    pairs = {name: found[f"pairs_{name}"] for name in _NAMES if f"pairs_{name}" in found}
    text = [_picture(found, pairs)] if pairs else []
    text += [
        """The teacher is SPC/Fw, a flexible SPC/E: its energies, forces and virials are exact, and beyond 6 Å its
molecules interact by their charges alone. Both models have the same network and the same frames, of the liquid and of
clusters of 1 to 8 molecules; the second has the teacher's charges beside it, as Gaussians of 1 Å
(`model.electrostatics`, fixed charges), and learns what is left. Yue et al. trained on DFT and on more data, with other
networks: what is to be reproduced is where a model of short range fails and where it does not, not their numbers.
""",
        "## Frames that neither has seen\n",
        _training(found),
        _errors(found),
        origin(*(found.get(f"train_{name}") for name in _NAMES)),
        "## Two molecules\n",
        _pairs(pairs),
        origin(*pairs.values()),
        "## Clusters larger than those in training\n",
        _clusters(found),
        "## The liquid\n",
        _liquid(found),
        "## What it costs\n",
        _cost(found.get("cost"), found.get("served_surroundings")),
    ]
    return "\n".join(text)


def _training(found: dict[str, Record]) -> str:
    """What the models were trained on."""
    record, frames = found.get("train_charges"), found.get("frames")
    if record is None or frames is None:
        return ""
    counts = {name: n for name, n in frames["n_frames"].items() if not name.startswith("test_")}
    liquid = sum(n for name, n in counts.items() if name.startswith("liquid"))
    return (
        f"{record['settings']['steps']:,} steps on {liquid:,} frames of the liquid (64 molecules) and "
        f"{sum(counts.values()) - liquid:,} of clusters; errors on frames of other dynamics:\n"
    )


def _errors(found: dict[str, Record]) -> str:
    rows = []
    for name, words in _NAMES.items():
        if (record := found.get(f"train_{name}")) is None:
            continue
        for system, errors in (
            ("liquid", record["liquid"]),
            *((f"{n} molecule{'s' if int(n) > 1 else ''}", e) for n, e in record["clusters"].items()),
        ):
            rows.append((words, system, number(errors["energy_rmse"]), number(errors["force_rmse"])))
    return table(("model", "frames", "energy RMSE, meV/atom", "force RMSE, meV/Å"), rows)


def _beyond(record: Record) -> tuple[float, float]:
    """RMS error and RMS energy of two molecules that are further apart than the cutoff and closer than twice as far."""
    radius = np.array(record["radius"])
    # the hydrogens reach a little further than the oxygens
    there = (radius > _RCUT + 2.0) & (radius < 2 * _RCUT)
    error, size = (np.array(record[f"rms_{name}_mev"], dtype=np.float64)[there] for name in ("error", "teacher"))
    return float(np.sqrt(np.mean(error**2))), float(np.sqrt(np.mean(size**2)))


def _pairs(pairs: dict[str, Record]) -> str:
    if not pairs:
        return ""
    first = next(iter(pairs.values()))
    rows = [
        (t, number(first["b2_teacher_cm3"][k], 4), *(number(r["b2_model_cm3"][k], 4) for r in pairs.values()))
        for k, t in enumerate(first["temperature"])
    ]
    lines = [
        f"From 8 to 12 Å two molecules have {_beyond(first)[1]:.2f} meV (root mean square over orientations); "
        + " and ".join(f"the model {_NAMES[n]} is off by {_beyond(r)[0]:.3g} meV" for n, r in pairs.items())
        + ". The second virial coefficient in cm³/mol, of rigid molecules in random orientations "
        f"({first['settings']['orientations']} at each distance, the same for all), where atoms of two molecules "
        "closer than any in the dynamics count as infinitely high:\n",
        table(("T, K", "teacher", *(_NAMES[n] for n in pairs)), rows),
        "Energies through a daemon differ from those in the same process by at most "
        f"{number(max(r['served_difference_ev'] for r in pairs.values()))} eV.\n",
    ]
    return "\n".join(lines)


def _clusters(found: dict[str, Record]) -> str:
    records = {n: found[f"clusters_{n}"] for n in _NAMES if f"clusters_{n}" in found}
    rows = [
        (row["n_molecules"], _NAMES[n], number(row["mean_mev"]), number(row["rms_mev"]))
        for n, r in records.items()
        for row in r["clusters"]
    ]
    return (
        table(("molecules", "model", "mean error, meV per molecule", "RMS error"), rows)
        + "\n"
        + origin(*records.values())
    )


def deviation(first: Record, second: Record, pair: str = "g_OO") -> float:
    """∫ |Δg| dr from 2 Å on, Å."""
    a, b = (np.array(r[pair]) for r in (first, second))
    n = min(len(a), len(b))
    start = int(2.0 / first["bin"])
    return float(np.abs(a[start:n] - b[start:n]).sum() * first["bin"])


def _liquid(found: dict[str, Record]) -> str:
    teacher = found.get("liquid_teacher")
    if teacher is None:
        return origin(None)
    halves = teacher["halves"]
    rows = [
        (
            "teacher, two runs of its own",
            "",
            *(number(deviation({**halves[0], "bin": teacher["bin"]}, halves[1], f"g_{p}")) for p in ("OO", "OH", "HH")),
        )
    ]
    records = {n: found[f"liquid_{n}"] for n in _NAMES if f"liquid_{n}" in found}
    for n, r in records.items():
        ours = [number(deviation(teacher, r, f"g_{p}")) for p in ("OO", "OH", "HH")]
        rows.append((_NAMES[n], number(r["length_ps"]), *ours))
    return (
        "∫|Δg| dr from 2 Å on against the teacher's dynamics at 300 K, Å; the models' by i-PI through the daemon:\n\n"
        + table(("", "length, ps", "OO", "OH", "HH"), rows)
        + "\n"
        + origin(teacher, *records.values())
    )


def _by_surroundings(served: Record | None) -> str:
    """That the daemon answers for the model that is only timed here."""
    if served is None:
        return ""
    return (
        f"\nThrough a daemon, forces of the model with charges by surroundings on {served['n_atoms']} atoms differ "
        f"from those in the same process by at most {number(served['largest_force_difference'])} eV/Å.\n"
    )


def _cost(record: Record | None, served: Record | None) -> str:
    if record is None:
        return origin(None)
    rows = [
        (
            r["n_atoms"],
            *(number(1e3 * r[f"{name}_s"]) for name in ("short_range", "charges", "surroundings")),
            f"{r['ratio']:.2f}",
        )
        for r in record["sizes"]
    ]
    return (
        f"Milliseconds of an evaluation, all cores, medians of {record['settings']['rounds']} in turn:\n\n"
        + table(("atoms", _NAMES["short_range"], _NAMES["charges"], "charges by surroundings", "ratio"), rows)
        + "\nThe ratio is that with fixed charges and without. Charges by surroundings are those of a model after one "
        f"step of training. The paper reports a ratio of {_PAPER_COST:.0f}. The network here is small, which makes the "
        "share of the charges large.\n\n" + origin(record) + _by_surroundings(served)
    )


def _picture(found: dict[str, Record], pairs: dict[str, Record]) -> str:
    figure, panels = new_figure(columns=3, size=(9.6, 3.0))
    left, middle, right = panels[0]
    first = next(iter(pairs.values()))
    left.plot(first["radius"], first["rms_teacher_mev"], color="k", label="energy itself")
    for name, record in pairs.items():
        left.plot(record["radius"], record["rms_error_mev"], color=_COLOURS[name], label=f"error {_NAMES[name]}")
        middle.plot(record["temperature"], record["b2_model_cm3"], "o-", ms=3, color=_COLOURS[name], label=_NAMES[name])
    left.axvline(_RCUT, color="0.7", lw=0.7, ls="--")
    left.set(xlabel="O-O (Å)", ylabel="two molecules, RMS (meV)", yscale="log", xlim=(2.4, 20))
    middle.plot(first["temperature"], first["b2_teacher_cm3"], "k--", label="teacher")
    middle.set(xlabel="T (K)", ylabel="B2 (cm³/mol)")
    if (teacher := found.get("liquid_teacher")) is not None:
        _curve(right, teacher, "k", "teacher")
    for name in _NAMES:
        if (record := found.get(f"liquid_{name}")) is not None:
            _curve(right, record, _COLOURS[name], _NAMES[name])
    right.set(xlabel="r (Å)", ylabel="g_OO", xlim=(2, None))
    for panel in panels[0]:
        panel.legend()
    return f"![Two molecules, second virial coefficient, liquid]({save_figure(figure, 'long-range')})\n"


def _curve(panel: Any, record: Record, colour: str, label: str) -> None:
    g = np.array(record["g_OO"])
    panel.plot((np.arange(len(g)) + 0.5) * record["bin"], g, color=colour, lw=1, label=label)


def answered(found: dict[str, Record]) -> dict[str, str]:
    """How the daemon has answered for each model; empty where it has not."""
    lines = {}
    for name, words in _NAMES.items():
        ways = {"pairs": "two molecules at several distances", "liquid": "i-PI's dynamics of the liquid"}
        lines[words] = " and ".join(how for record, how in ways.items() if f"{record}_{name}" in found)
    record = found.get("served_surroundings")
    lines["charges by surroundings"] = "" if record is None else f"a liquid of {record['n_atoms']} atoms"
    return lines


def claims(found: dict[str, Record]) -> list[Claim]:
    """Lines of the index."""
    return [_vapour(found), _condensed(found), _ratio(found.get("cost"))]


def _vapour(found: dict[str, Record]) -> Claim:
    text = "A model of short range fails for water vapour, one with charges does not (Yue et al. 2021)"
    short, far = found.get("pairs_short_range"), found.get("pairs_charges")
    if short is None or far is None:
        return Claim(text, NOT_MEASURED)
    (miss, size), (rest, _) = _beyond(short), _beyond(far)
    worst = [
        max(abs(a - b) / abs(b) for a, b in zip(r["b2_model_cm3"], r["b2_teacher_cm3"], strict=True))
        for r in (short, far)
    ]
    return Claim(
        text,
        f"two molecules at 8 to 12 Å: errors of {100 * miss / size:.0f} % and {100 * rest / size:.2g} %; B2 is off "
        f"by up to {100 * worst[0]:.0f} % and {100 * worst[1]:.0f} %",
        "an empirical teacher (SPC/Fw) in place of DFT; rigid molecules" + quick_note(short, far),
        holds(miss > 0.5 * size and rest < 0.1 * size and worst[1] < worst[0], short, far),
    )


def _condensed(found: dict[str, Record]) -> Claim:
    text = "The liquid survives without long range"
    teacher, short, far = (found.get(f"liquid_{n}") for n in ("teacher", "short_range", "charges"))
    if teacher is None or short is None or far is None:
        return Claim(text, NOT_MEASURED)
    a, b = deviation(teacher, short), deviation(teacher, far)
    halves = teacher["halves"]
    own = deviation({**halves[0], "bin": teacher["bin"]}, halves[1])
    return Claim(
        text,
        f"∫|Δg_OO| dr: {a:.3f} Å without, {b:.3f} Å with charges; {own:.3f} Å between two runs of the teacher",
        f"{number(short['length_ps'])} ps each" + quick_note(teacher, short, far),
        holds(a <= own, teacher, short, far),
    )


def _ratio(record: Record | None) -> Claim:
    text = f"Charges take no more than {_PAPER_COST:.0f} times as long as without them, as in the paper"
    if record is None:
        return Claim(text, NOT_MEASURED)
    large = record["sizes"][-1]
    return Claim(
        text,
        f"{large['ratio']:.2f} times at {large['n_atoms']:,} atoms",
        "another network and machine; a small network makes the share of the charges large" + quick_note(record),
        holds(large["ratio"] <= _PAPER_COST, record),
    )
