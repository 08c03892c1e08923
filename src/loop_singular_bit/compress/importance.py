"""llama.cpp's importance matrix from our calibration, so that a peer sees the text that we see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loop_singular_bit.compress.allocate import SITE_OF_ROLE
from loop_singular_bit.compress.calibrate import LayerStatistics, Tokens, statistics
from loop_singular_bit.engine.network import Network
from loop_singular_bit.models.names import gguf_name
from loop_singular_bit.models.spec import layer_tensors

Floats = npt.NDArray[np.float32]


def importance_matrix(network: Network, tokens: Tokens) -> dict[str, Floats]:
    """Mean squared input [cols] of every linear matrix, by its name in a GGUF file.

    Embedding and head are left out, as llama.cpp's own tool does.
    """
    found: dict[str, Floats] = {}
    for part in statistics(network, tokens):
        if not isinstance(part, LayerStatistics):
            continue
        squares = {site: np.ascontiguousarray(np.diag(H)) for site, H in part.hessians.items()}
        for tensor in layer_tensors(network.spec, part.index):
            if (site := SITE_OF_ROLE.get(tensor.role)) is not None:
                found[gguf_name(tensor)] = squares[site]
    return found
