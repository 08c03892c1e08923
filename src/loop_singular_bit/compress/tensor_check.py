"""Are the tensors of a file those of the network? Asked when a model is opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from loop_singular_bit.compress.stored_tensor import StoredTensor
from loop_singular_bit.errors import TensorError
from loop_singular_bit.models.spec import Role, TensorSpec


def check_tensors(
    expected: Mapping[str, TensorSpec],
    stored: Mapping[str, StoredTensor],
    kinds: Collection[str],
    sizes_from: str,
) -> None:
    """Raise TensorError for the first tensor that is missing, misshapen, of a kind that cannot be
    decoded, or not part of the network: a weight silently left out would change it.

    expected    the network's tensors by their name in the file
    stored      the file's tensors, without those that may be ignored
    kinds       names of the element types that can be read
    sizes_from  where the expectation comes from, such as "config.json"
    """
    for name, tensor in expected.items():
        if name not in stored:
            untied = " (the head is not tied to the embedding)" if tensor.role is Role.HEAD else ""
            raise TensorError(f"tensor {name} is missing, expected by {sizes_from}{untied}")
        found = stored[name]
        if found.shape != tensor.shape:
            raise TensorError(
                f"tensor {name} has shape {list(found.shape)}, "
                f"{sizes_from} expects {list(tensor.shape)}"
            )
        if found.kind not in kinds:
            raise TensorError(
                f"tensor {name} is stored as {found.kind}, expected one of: {', '.join(kinds)}"
            )
    unexpected = sorted(stored.keys() - expected.keys())
    if unexpected:
        raise TensorError(
            f"tensor {unexpected[0]} is unexpected: the network described by {sizes_from} has "
            f"{len(expected)} tensors, {len(stored)} found"
        )
