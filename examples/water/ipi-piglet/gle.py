"""Fit the coloured-noise thermostat of input.xml, and print its matrices A (1/ps) and C (K) as i-PI reads them.

A harmonic oscillator of frequency ω has the quantum fluctuation <q²> = ħ/(2mω) coth(ħω/2kT). A ring polymer of P beads
at the temperature PT reaches it with normal modes of frequency Ω_k² = (2PkT/ħ · sin kπ/P)² + ω² if

    Σ_{k>0} τ(Ω_k) / Ω_k² = [(x/2) coth(x/2) - 1] / ω²,   x = ħω/kT,   τ(Ω) = mΩ² <q_k²> / PkT,

and the centroid is classical (Ceriotti and Manolopoulos, PRL 109, 100604, 2012). White noise has τ = 1, for which the
sum converges slowly with P. Here all modes but the centroid share one generalized Langevin equation for the momentum p
and two auxiliary momenta, whose stationary covariance gives a τ that rises with Ω as it should, for all ω up to X_MAX.

Heat leaks from these modes into the centroid where their frequencies meet, at the stretches. The centroid's thermostat,
which obeys the fluctuation-dissipation theorem, is strong there and weak for slow motion: its friction at ω is
w + a ω²/(c² + ω²).
"""

import numpy as np
from scipy.optimize import least_squares

BEADS = 6
TEMPERATURE = 300.0  # K
X_MAX = 20.0  # ħω/kT, 4170 cm⁻¹
RATE = 0.13092034 * TEMPERATURE  # kT/ħ, 1/ps
CENTROID = (0.1, 15.0, 10.0)  # kT/ħ: friction at ω = 0, what it gains towards high ω, and where

N = 3  # the momentum and two more
LOWER = np.tril_indices(N)


def covariance(drift, noise, omega):
    """Stationary covariance of (q, p, s) in a harmonic well, (n_omega, N + 1, N + 1): F Σ + Σ Fᵀ = noise."""
    flow = np.zeros((len(omega), N + 1, N + 1))
    flow[:, 1:, 1:] = drift
    flow[:, 0, 1], flow[:, 1, 0] = -1.0, omega**2
    one, size = np.eye(N + 1), (N + 1) ** 2
    lyapunov = np.einsum("xij,kl->xikjl", flow, one) + np.einsum("ij,xkl->xikjl", one, flow)
    right = np.pad(noise, (1, 0)).reshape(1, size, 1)
    sigma = np.linalg.solve(lyapunov.reshape(-1, size, size), np.broadcast_to(right, (len(omega), size, 1)))
    return sigma.reshape(-1, N + 1, N + 1), np.linalg.eigvals(flow).real.min(axis=1)


def friction(drift, omega):
    """Friction at a frequency, the real part of the memory kernel's transform, (n_omega,)."""
    inner = drift[1:, 1:] + 1j * omega[:, None, None] * np.eye(N - 1)
    kernel = drift[0, 1:] @ np.linalg.solve(inner, np.broadcast_to(drift[1:, :1], (len(omega), N - 1, 1)))
    return np.real(drift[0, 0] - kernel[:, 0])


def matrices(parameters):
    """Drift and noise; the latter is positive by construction."""
    drift, lower = np.zeros((N, N)), np.zeros((N, N))
    (drift[0, 0], decay, turn), drift[0, 1:], drift[1:, 0] = np.exp(parameters[:3]), parameters[3:5], parameters[5:7]
    drift[1:, 1:] = [[decay, turn], [-turn, decay]]
    lower[LOWER] = parameters[7:]
    return drift, lower @ lower.T


def residuals(parameters, x, omega, weights):
    """Relative errors of the sum, and penalties on modes that are damped too little, too much or too slowly."""
    drift, noise = matrices(parameters)
    sigma, slowest = covariance(drift, noise, omega.ravel())
    damping = friction(drift, omega.ravel()) / omega.ravel()
    errors = sigma[:, 0, 0].reshape(omega.shape).sum(axis=1) / weights - 1
    unhealthy = [
        np.minimum(damping - 0.3, 0),
        np.maximum(damping - 1.5, 0),
        np.minimum(slowest / omega.ravel() - 0.15, 0),
    ]
    return np.concatenate([300 * errors, *(3 * u for u in unhealthy), 1e-3 * parameters])


def fit():
    """Drift and covariance in units of kT/ħ and of PT, and the largest relative error of the sum."""
    x = np.linspace(0.05, X_MAX, 40)
    modes = 2 * BEADS * np.sin(np.pi * np.arange(1, BEADS) / BEADS)
    omega = np.sqrt(modes**2 + x[:, None] ** 2)
    weights = (x / 2 / np.tanh(x / 2) - 1) / x**2
    start = np.concatenate([np.log([2.0, 12.0, 14.0]), [14.0, -7.0, -14.0, 1.0], 4 * np.eye(N)[LOWER]])
    best = least_squares(residuals, start, args=(x, omega, weights), max_nfev=2000)
    drift, noise = matrices(best.x)
    one = np.eye(N)
    lyapunov = np.einsum("ij,kl->ikjl", drift, one) + np.einsum("ij,kl->ikjl", one, drift)
    static = np.linalg.solve(lyapunov.reshape(N * N, N * N), noise.ravel()).reshape(N, N)
    return drift, (static + static.T) / 2, np.abs(best.fun[: len(x)]).max() / 300


def centroid():
    """Drift of the centroid in units of kT/ħ; its covariance is the identity times PT."""
    white, gain, corner = CENTROID
    drift = corner * np.eye(N)
    drift[0, 0] = white + gain
    drift[0, 1] = drift[1, 0] = np.sqrt(gain * corner)
    return drift


def element(name, units, first, others):
    """One matrix for each normal mode, as an XML element."""
    rows = (", ".join(f"{v:.8g}" for v in row) for m in (first, *[others] * (BEADS - 1)) for row in m)
    body = ",\n".join(f"            {row}" for row in rows)
    start = f'          <{name} shape="({BEADS}, {N}, {N})" units="{units}">'
    return f"{start}\n          [\n{body}\n          ]\n          </{name}>"


if __name__ == "__main__":
    drift, static, error = fit()
    print(f"<!-- Largest error of a harmonic mode's quantum fluctuation up to {X_MAX:g} kT: {100 * error:.2g} % -->")
    print(element("A", "terahertz*rad", centroid() * RATE, drift * RATE))
    print(element("C", "kelvin", np.eye(N) * BEADS * TEMPERATURE, static * BEADS * TEMPERATURE))
