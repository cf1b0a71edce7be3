"""Electron configurations of the elements, as the vectors that DPA-1 embeds with `use_econf_tebd`.

Each orbital of the shells 1s to 7p has two numbers, one for each spin: 1 if there is an electron, -1 if there is none.
The orbitals of a shell are filled with one electron each before any has two; those with two come first. All is divided
by the square root of the length, so that vectors have the length 1.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from dpserver.errors import ConfigError
from dpserver.frames import Floats

_ELEMENTS: Final = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc
Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi
Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
_BY_NUMBER: Final = "1s 2s 2p 3s 3p 3d 4s 4p 4d 4f 5s 5p 5d 5f 6s 6p 6d 7s 7p"
_BY_ENERGY: Final = "1s 2s 2p 3s 3p 4s 3d 4p 5s 4d 5p 6s 4f 5d 6p 7s 5f 6d 7p"
_EXCEPTIONS: Final = {
    "Cr": "3d5 4s1",
    "Cu": "3d10 4s1",
    "Nb": "4d4 5s1",
    "Mo": "4d5 5s1",
    "Ru": "4d7 5s1",
    "Rh": "4d8 5s1",
    "Pd": "4d10 5s0",
    "Ag": "4d10 5s1",
    "La": "4f0 5d1",
    "Ce": "4f1 5d1",
    "Gd": "4f7 5d1",
    "Pt": "5d9 6s1",
    "Au": "5d10 6s1",
    "Ac": "5f0 6d1",
    "Th": "5f0 6d2",
    "Pa": "5f2 6d1",
    "U": "5f3 6d1",
    "Np": "5f4 6d1",
    "Cm": "5f7 6d1",
    "Ds": "6d9 7s1",
    "Rg": "6d10 7s1",
}
"""Shells that the order of energies fills differently."""
SYMBOLS: Final = tuple(_ELEMENTS.split())
"""Of all elements, by atomic number, hydrogen first."""
_SHELLS: Final = _BY_NUMBER.split()
_ORBITALS: Final = {"s": 1, "p": 3, "d": 5, "f": 7}

LENGTH: Final = 2 * sum(_ORBITALS[shell[1]] for shell in _SHELLS)
"""Of a vector."""


def occupation(symbol: str) -> dict[str, int]:
    """Electrons in each shell of a free atom in its ground state.

    Raises:
        ConfigError: there is no such element.
    """
    if symbol not in SYMBOLS:
        raise ConfigError(f"{symbol!r} in type_map is no element; use_econf_tebd needs the electrons of every type")
    left, found = SYMBOLS.index(symbol) + 1, {}
    for shell in _BY_ENERGY.split():
        found[shell] = min(left, 2 * _ORBITALS[shell[1]])
        left -= found[shell]
    found.update((entry[:2], int(entry[2:])) for entry in _EXCEPTIONS.get(symbol, "").split())
    return found


def configuration(symbol: str) -> Floats:
    """The vector of an element, (LENGTH,).

    Raises:
        ConfigError: there is no such element.
    """
    electrons, spins = occupation(symbol), []
    for shell in _SHELLS:
        n_orbitals, n = _ORBITALS[shell[1]], electrons[shell]
        n_pairs = max(n - n_orbitals, 0)
        n_single = n - 2 * n_pairs
        spins += [1, 1] * n_pairs + [-1, 1] * n_single + [-1, -1] * (n_orbitals - n_pairs - n_single)
    return np.asarray(np.array(spins) / np.sqrt(LENGTH))
