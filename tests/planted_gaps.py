"""Gaps that fall along a ladder of samples with an exponent that is known."""

import numpy as np

SAMPLES = np.array([3e4, 1.2e5, 4e5, 1e6, 4e6, 1.2e7, 6e7])


def planted(exponent, samples: np.ndarray, top: float, num_seeds: int, noise: float, key: int, floor=0.0) -> np.ndarray:
    """Gaps [level, seed] ∝ samples^(−exponent) + floor, lognormal over seeds."""
    rng = np.random.default_rng(key)
    spread = np.exp(noise * rng.standard_normal((len(samples), num_seeds)))
    return top * ((samples / samples[0])[:, None] ** -exponent + floor) * spread
