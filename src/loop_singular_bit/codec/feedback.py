"""Error feedback: which part of a column's error later columns can take over.

With H = E[x x^T] in the rotated basis and H = (I + A) D (I + A)^T, A strictly upper and D block
diagonal, quantizing column blocks in order with targets W_J + sum_{i<J} (W_i - Q_i) A_{i,J} leaves
tr(E H E^T) = sum_J tr(e_J D_J e_J^T), e_J the plain quantization error of block J (GPTQ,
arXiv 2210.17323; LDLQ, arXiv 2307.13304).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native

Floats = npt.NDArray[np.float32]


def damped(H: Floats, damping: float) -> Floats:
    """H plus `damping` times its mean diagonal; all-zero statistics become the identity."""
    mean = float(np.diag(H).astype(np.float64).mean())
    out = H.copy()
    out[np.diag_indices(len(H))] += np.float32(damping * mean if mean > 0 else 1.0)
    return out


def feedback_panels(H: Floats, block: int) -> npt.NDArray[np.float32]:
    """A as packed panels [ceil(cols/32), cols, 32] for the encoder. H: damped, rotated."""
    cols = len(H)
    wide = H.astype(np.float64) if cols <= 4096 else H  # 14336 columns in float64 are 1.6 GB
    # Transposed: what the library copies is then contiguous.
    upper = np.ascontiguousarray(np.linalg.cholesky(wide[::-1, ::-1].T)[::-1, ::-1])
    for start in range(0, cols, block):
        J = slice(start, min(start + block, cols))
        upper[: J.stop, J] = upper[: J.stop, J] @ np.linalg.inv(upper[J, J])
    upper[np.diag_indices(cols)] -= 1
    panels = np.empty((-(-cols // 32), cols, 32), np.float32)
    _native.pack_panels(np.ascontiguousarray(upper, np.float32), panels)
    return panels
