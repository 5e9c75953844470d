"""scikit-learn's handwritten digits, 1,797 pictures of 8x8 pixels, with a written-down held-out fifth."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPLIT_FILE = Path(__file__).with_name('digits_split.json')
_LEVELS = 16  # the data set counts inked sub-pixels, 0 to 16


def load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All pictures [1797, 8, 8] in 8-bit grey, white on black, and their labels [1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * (255 / _LEVELS)).astype(np.uint8), digits.target.astype(np.int64)


def held_out() -> NDArray[np.int64]:
    """Indices of the 360 held-out pictures, in ascending order, from the file that is their definition."""
    return np.array(json.loads(SPLIT_FILE.read_text())['held_out'])
