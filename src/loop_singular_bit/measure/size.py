"""What a size means: bits for each weight, and the ratio to 16-bit weights."""

from __future__ import annotations


def size_facts(size_bytes: int, parameters: int) -> dict[str, int | float]:
    """The figures every report of a size has, by their public names."""
    return {
        "size_bytes": size_bytes,
        "original_bytes_16bit": 2 * parameters,
        "parameters": parameters,
        "bits_per_weight": 8 * size_bytes / parameters,
        "compression_ratio": 2 * parameters / size_bytes,
    }
