"""Prints the polynomials of `crates/llamavid-kernels/src/operations/gelu.rs`: erf(x) = x P(x^2) / Q(x^2) for |x| < 4.

Iterated weighted least squares towards the smallest relative error. Run with numpy 1.26.4.
"""

import math

import numpy as np

REACH = 4.0
DEGREE = 6
SCALE = REACH**2

x = np.sort(
    np.concatenate(
        [np.cos(np.linspace(0, np.pi / 2, 4001)[:-1]) * REACH, np.linspace(1e-3, REACH, 4000)]
    )
)
ratio = np.array([math.erf(value) for value in x]) / x
powers = np.vander(x * x / SCALE, DEGREE + 1, increasing=True)
equations = np.concatenate([powers, -ratio[:, None] * powers[:, 1:]], 1)
denominator = np.ones_like(x)
emphasis = np.ones_like(x)
for _ in range(60):
    weight = np.sqrt(emphasis) / ratio / np.abs(denominator)
    solution, *_ = np.linalg.lstsq(equations * weight[:, None], ratio * weight, rcond=None)
    p, q = solution[: DEGREE + 1], np.concatenate([[1], solution[DEGREE + 1 :]])
    denominator = powers @ q
    error = np.abs(powers @ p / denominator / ratio - 1)
    emphasis *= 0.2 + error / error.max()
    emphasis /= emphasis.mean()

print("largest relative error", error.max())
print("P", [float(f"{value:.12g}") for value in p / SCALE ** np.arange(DEGREE + 1)])
print("Q", [float(f"{value:.12g}") for value in q / SCALE ** np.arange(DEGREE + 1)])
