"""Electron configurations: against what is known of some elements."""

from __future__ import annotations

import numpy as np
import pytest

from dpserver.models.electrons import LENGTH, configuration, occupation


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("H", "1s1"),
        ("O", "1s2 2s2 2p4"),
        ("Cr", "1s2 2s2 2p6 3s2 3p6 3d5 4s1"),
        ("Pd", "1s2 2s2 2p6 3s2 3p6 3d10 4s2 4p6 4d10"),
        ("Au", "1s2 2s2 2p6 3s2 3p6 3d10 4s2 4p6 4d10 4f14 5s2 5p6 5d10 6s1"),
        ("U", "1s2 2s2 2p6 3s2 3p6 3d10 4s2 4p6 4d10 4f14 5s2 5p6 5d10 5f3 6s2 6p6 6d1 7s2"),
    ],
)
def test_ground_states(symbol: str, expected: str) -> None:
    found = {shell: n for shell, n in occupation(symbol).items() if n}
    assert found == {entry[:2]: int(entry[2:]) for entry in expected.split()}


def test_vectors_count_electrons() -> None:
    for number, symbol in [(1, "H"), (26, "Fe"), (78, "Pt"), (92, "U"), (118, "Og")]:
        vector = configuration(symbol) * np.sqrt(LENGTH)
        assert vector.shape == (118,)
        assert np.sum(vector > 0) == number
        assert np.linalg.norm(configuration(symbol)) == pytest.approx(1)


def test_hunds_rule() -> None:
    """Nitrogen has three p orbitals with one electron each, oxygen one with two and two with one."""
    nitrogen, oxygen = (configuration(symbol) * np.sqrt(LENGTH) for symbol in ("N", "O"))
    assert nitrogen[4:10].tolist() == pytest.approx([-1, 1, -1, 1, -1, 1])
    assert oxygen[4:10].tolist() == pytest.approx([1, 1, -1, 1, -1, 1])
