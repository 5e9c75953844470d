"""Means with confidence intervals of numbers that come batch by batch, in memory that does not grow with them.

A bootstrap draws as many pictures with replacement, again and again. How often one picture is drawn is close to a
Poisson distribution of mean 1, independent of the others, so that the sums of all replicates can be kept as pictures
pass: the Poisson bootstrap (Chamandy, Muralidharan, Najmi, Naidu, "Estimating Uncertainty for Massive Data Streams",
2012).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Means and the percentiles of their bootstrap, all of one shape; nan where nothing was seen.

    Attributes:
        mean: Over the pictures.
        low: Lower end of the confidence interval.
        high: Upper end.
    """

    mean: Doubles
    low: Doubles
    high: Doubles


class PoissonBootstrap:
    """Draws how often each picture comes in each replicate.

    The n-th picture gets the same numbers for a seed, however the pictures are batched.

    Args:
        replicates: R, how many.
        seed: Of the draws.
    """

    def __init__(self, replicates: int, seed: int) -> None:
        self.replicates = replicates
        self._generator = np.random.default_rng(seed)

    def draw(self, count: int) -> Doubles:
        """The next pictures' numbers [count, R]."""
        return self._generator.poisson(1.0, (count, self.replicates)).astype(np.float64)


class Means:
    """Means of N numbers of each picture, over the pictures and over each replicate's.

    Args:
        numbers: N.
        replicates: R.
    """

    def __init__(self, numbers: int, replicates: int) -> None:
        self.count = 0
        self._sum = np.zeros(numbers)
        self._drawn = np.zeros(replicates)
        self._sums = np.zeros((numbers, replicates))

    def add(self, values: Doubles, draws: Doubles) -> None:
        """Take in pictures: their numbers [B, N] and how often each comes in each replicate [B, R]."""
        self.count += len(values)
        self._sum += values.sum(axis=0)
        self._drawn += draws.sum(axis=0)
        self._sums += values.T @ draws

    def mean(self) -> Doubles:
        """Over the pictures, [N]."""
        return self._sum / self.count if self.count else np.full_like(self._sum, np.nan)

    def replicates(self) -> Doubles:
        """Of each replicate that drew a picture, [N, R']."""
        there = self._drawn > 0
        return self._sums[:, there] / self._drawn[there]


def estimate(mean: Doubles, replicates: Doubles, confidence: float) -> Estimate:
    """The interval in which a share `confidence` of the replicates' means [..., R] lies, in the middle."""
    if not replicates.shape[-1]:
        nothing = np.full_like(mean, np.nan)
        return Estimate(mean, nothing, nothing)
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, (tail, 1 - tail), axis=-1)
    return Estimate(mean, low, high)
