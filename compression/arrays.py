"""The array type that codecs take and models are exchanged in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
"""A float32 tensor, the only dtype that is exchanged."""
