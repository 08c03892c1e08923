"""llama.cpp's importance matrix from our calibration, so that a peer sees the text that we see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loop_singular_bit.compress.forward import HiddenStates, Tokens
from loop_singular_bit.engine.network import LayerWeights, Network
from loop_singular_bit.engine.sweep import SITE_OF_ROLE, InputSite
from loop_singular_bit.models.names import gguf_name
from loop_singular_bit.models.spec import LINEAR_ROLES, layer_tensors

Floats = npt.NDArray[np.float32]


def importance_matrix(network: Network, tokens: Tokens) -> dict[str, Floats]:
    """Mean squared input [cols] of every linear matrix, by its name in a GGUF file.

    Embedding and head are left out, as llama.cpp's own tool does.
    """
    found: dict[str, Floats] = {}
    states = HiddenStates(network, tokens)
    for index in range(network.spec.layers):
        means = _mean_squares(states, network.layer(index))
        for tensor in layer_tensors(network.spec, index):
            if tensor.role in LINEAR_ROLES:
                found[gguf_name(tensor)] = means[SITE_OF_ROLE[tensor.role]]
    return found


def _mean_squares(states: HiddenStates, layer: LayerWeights) -> dict[InputSite, Floats]:
    """Of what enters each site's matrices [cols]; the states pass the layer."""
    sums: dict[InputSite, npt.NDArray[np.float64]] = {}

    def look(site: InputSite, x: Floats, rows: slice) -> None:
        squares = np.einsum("tc,tc->c", x, x).astype(np.float64)
        sums[site] = sums[site] + squares if site in sums else squares

    states.pass_layer(layer, look)
    return {site: (total / len(states.x)).astype(np.float32) for site, total in sums.items()}
