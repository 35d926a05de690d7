"""What lies in a file, by the reader that users get."""

from pathlib import Path

import numpy as np

from s2ap_diag.reading.read import read


def masks_in(file: Path) -> dict[str, np.ndarray]:
    """The masks of a file by weight name, boolean."""
    return read(file).as_masks().masks.unpack()
