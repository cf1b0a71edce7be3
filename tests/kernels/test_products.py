"""Products of moments: the first layer of a net on D, folded in two ways."""

from __future__ import annotations

import numpy as np
import pytest

from dpserver.frames import Floats
from dpserver.kernels.products import Magnitudes, Products, of_channels, of_columns

RNG = np.random.default_rng(4)
WEIGHTS = RNG.normal(size=(7, 3, 5))  # channels, axes, outputs


def outputs(products: Products, moments: Floats) -> Floats:
    """What the layer makes of the products, (n_atoms, n_out)."""
    found = [
        np.einsum("kn,kmn->nm", moments[:, :, i].T, moments[:, :, j : j + count].transpose(1, 2, 0))
        for i, j, count in products.segments
    ]
    return np.concatenate(found, axis=1) @ products.weights


def expected(channels: Floats) -> Floats:
    d = np.einsum("nka,nkb->nab", channels, channels[:, :, :3])
    return np.einsum("nab,abo->no", d, WEIGHTS)


def test_equal_elements_of_the_descriptor_enter_once() -> None:
    channels = RNG.normal(size=(6, 4, 7))
    products = of_channels(WEIGHTS)
    assert products.n_inputs == 7 * 3 - 3
    np.testing.assert_allclose(outputs(products, channels), expected(channels), rtol=1e-12)


def columns() -> tuple[list[Floats], list[int], Floats, Floats]:
    """Matrices of two species, where their columns begin in a padded row, such rows, and the channels."""
    mixes, starts = [RNG.normal(size=(4, 7)), RNG.normal(size=(2, 7))], [0, 8]
    moments = RNG.normal(size=(6, 4, 12))
    channels = moments[:, :, :4] @ mixes[0] + moments[:, :, 8:10] @ mixes[1]
    return mixes, starts, moments, channels


def test_columns_need_not_be_mixed() -> None:
    mixes, starts, moments, channels = columns()
    sizes = [Magnitudes(np.ones(n), np.ones(n)) for n in (4, 2)]
    products = of_columns(WEIGHTS, mixes, starts, sizes, 0.0)
    assert products.n_inputs == 6 * 7 // 2
    np.testing.assert_allclose(outputs(products, moments), expected(channels), rtol=1e-12)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-8])
def test_what_hardly_matters_is_left_out(tolerance: float) -> None:
    mixes, starts, moments, _ = columns()
    fading = [np.array([1, 1e-2, 1e-4, 1e-7]), np.array([1, 1e-3])]
    moments[:, :, :4] *= fading[0]
    moments[:, :, 8:10] *= fading[1]
    channels = moments[:, :, :4] @ mixes[0] + moments[:, :, 8:10] @ mixes[1]
    products = of_columns(WEIGHTS, mixes, starts, [Magnitudes(f, f) for f in fading], tolerance)
    assert products.n_inputs < 21
    exact = expected(channels)
    deviation = np.sqrt(np.mean((outputs(products, moments) - exact) ** 2) / np.mean(exact**2))
    assert deviation < 5 * tolerance
