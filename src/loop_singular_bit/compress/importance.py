"""llama.cpp's importance matrix from our calibration, so that a peer sees the text that we see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loop_singular_bit.compress.calibrate import LayerStatistics, statistics
from loop_singular_bit.compress.forward import Tokens
from loop_singular_bit.engine.network import Network
from loop_singular_bit.models.names import gguf_name
from loop_singular_bit.models.spec import LINEAR_ROLES, layer_tensors

Floats = npt.NDArray[np.float32]


def importance_matrix(network: Network, tokens: Tokens) -> dict[str, Floats]:
    """Mean squared input [cols] of every linear matrix, by its name in a GGUF file.

    Embedding and head are left out, as llama.cpp's own tool does.
    """
    found: dict[str, Floats] = {}
    for part in statistics(network, tokens):
        if not isinstance(part, LayerStatistics):
            continue
        for tensor in layer_tensors(network.spec, part.index):
            if tensor.role in LINEAR_ROLES:
                found[gguf_name(tensor)] = np.ascontiguousarray(np.diag(part.hessians[tensor.role]))
    return found
