"""Real solid harmonics: polynomials of a vector that turn into each other with it, degree by degree.

With Racah's normalisation they keep scalar products, P_l the Legendre polynomials:

    Σ_m Y_lm(u) Y_lm(v) = |u|^l |v|^l P_l(cos(u, v))

    Y_l,±m = sqrt(2 (l-m)!/(l+m)!) Π_lm(z, r²) {Re, Im} (x + iy)^m,   Y_l0 = Π_l0

    Π_mm = (2m-1)!!,   (l-m) Π_lm = (2l-1) z Π_l-1,m - (l+m-1) r² Π_l-2,m
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def solid_harmonics(vectors: Tensor, degree: int) -> Tensor:
    """All harmonics of degrees 2 to `degree`.

    Args:
        vectors: (n, 3).
        degree: the highest.

    Returns:
        (n, 5 + 7 + …), degree by degree.
    """
    x, y, z = vectors.unbind(dim=-1)
    square = x * x + y * y + z * z
    powers = [(torch.ones_like(x), torch.zeros_like(x))]  # (x + iy)^m
    for _ in range(degree):
        re, im = powers[-1]
        powers.append((x * re - y * im, x * im + y * re))
    found: list[list[Tensor]] = [[] for _ in range(degree + 1)]
    for m, (re, im) in enumerate(powers):
        below, here = torch.zeros_like(x), torch.full_like(x, math.prod(range(1, 2 * m, 2)))
        for n in range(m, degree + 1):
            if n > m:
                below, here = here, ((2 * n - 1) * z * here - (n + m - 1) * square * below) / (n - m)
            scale = math.sqrt((2 if m else 1) * math.factorial(n - m) / math.factorial(n + m))
            found[n] += [scale * here * part for part in ((re, im) if m else (re,))]
    return torch.stack([y_nm for of_degree in found[2:] for y_nm in of_degree], dim=-1)
