"""Spending the storage budget: which codec each matrix gets, and the exact size that makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from loop_singular_bit.budget import GIGABYTE
from loop_singular_bit.codec.codecs import (
    STORED_BYTES,
    Codec,
    Int8,
    Outlier1,
    Planes,
    Raw16,
    Uniform1,
)
from loop_singular_bit.codec.outliers import SKIP
from loop_singular_bit.codec.planes import PlaneOptions
from loop_singular_bit.codec.tables import WINDOW_DEFAULT, WINDOW_MAX, WINDOW_MIN, WINDOWS
from loop_singular_bit.codec.tiling import ROW_TILE_ROWS, TILE_ROWS
from loop_singular_bit.compress.encode import input_seed
from loop_singular_bit.compress.spend import Kept, spent
from loop_singular_bit.container.layout import RecordPlan, plan_layout
from loop_singular_bit.engine.sweep import SITE_OF_ROLE
from loop_singular_bit.errors import BudgetError, UsageError
from loop_singular_bit.models.spec import (
    LINEAR_ROLES,
    ModelSpec,
    Role,
    TensorSpec,
    all_tensors,
    parameter_count,
)

PLANES_DEFAULT = 4
PLANES_MOST = 6  # beyond, int8 activations cost more than another plane gives
AUTO: Final = "auto"
EMBEDDING_PLANES_MORE = 2  # a row is one token: an error there is not averaged over a sum

# Who gets one more plane first when a budget leaves room: small and sensitive before large.
PRIORITY = (Role.V, Role.K, Role.O, Role.DOWN, Role.Q, Role.UP, Role.GATE)
BASELINES: Mapping[str, Codec] = {
    "raw": Raw16(), "int8": Int8(), "uniform1": Uniform1(), "outlier1": Outlier1(),
}  # fmt: skip


@dataclass(frozen=True)
class CodecOptions:
    """What the user fixed; None is left to the planner.

    codec      "planes" or a baseline for the linear layers
    planes     loops of every linear matrix
    outlier_ratio  share of each linear matrix kept exactly; "auto": what the planner finds worth
                   its bytes in each
    embedding  "planes", "int8" or "raw" for embedding and head
    """

    codec: str = "planes"
    planes: int | None = None
    window: int = WINDOW_DEFAULT
    block: int = 4
    outlier_ratio: float | Literal["auto"] = 0.0
    embedding: str = "planes"

    def __post_init__(self) -> None:
        names = ("planes", *BASELINES)
        if self.codec not in names:
            raise UsageError(f"--codec {self.codec!r}: must be one of {', '.join(names)}")
        if self.embedding not in ("planes", "int8", "raw"):
            raise UsageError(f"--embedding {self.embedding!r}: must be planes, int8 or raw")
        if self.planes is not None and not 1 <= self.planes <= 8:
            raise UsageError(f"--planes {self.planes}: must be 1..8")
        if self.window not in WINDOWS:
            raise UsageError(f"--window {self.window}: must be {WINDOW_MIN}..{WINDOW_MAX}")
        if self.block not in (4, 8, 16, 32, 64):
            raise UsageError(f"--block {self.block}: must be 4, 8, 16, 32 or 64")
        if self.outlier_ratio != AUTO and not 0 <= self.outlier_ratio <= 0.5:
            raise UsageError(
                f"--outlier-ratio {self.outlier_ratio}: must be between 0 and 0.5, or {AUTO}"
            )
        if self.outlier_ratio == AUTO and (self.codec != "planes" or self.planes is not None):
            raise UsageError(
                f"--outlier-ratio {AUTO} weighs outliers against planes: leave out --codec "
                "and --planes"
            )

    @property
    def fixed_outliers(self) -> float:
        """The share that every linear matrix keeps at least."""
        return 0.0 if self.outlier_ratio == AUTO else self.outlier_ratio


@dataclass(frozen=True)
class Goal:
    """What planes are spent for.

    sensitivity  nats that each matrix costs at a relative error of 1 (compress/sensitivity.py)
    nats         what all matrices together may be predicted to cost: of all plans that hold it the
                 smallest is wanted. 0: as little as the storage allows.
    kept         what outliers hold, of the matrices that may have some (compress/spend.py)
    """

    sensitivity: Mapping[str, float]
    nats: float = 0.0
    kept: Kept = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A codec for each matrix by name, and the bytes the artefact will have.

    size_bytes      weights file plus companion files; exact where no outliers are kept
    size_bytes_max  the same when outliers fall where their index is longest
    """

    codecs: Mapping[str, Codec]
    size_bytes: int
    size_bytes_max: int

    @property
    def planes(self) -> dict[int, int]:
        """How many matrices have how many planes."""
        counts: dict[int, int] = {}
        for codec in self.codecs.values():
            if isinstance(codec, Planes):
                counts[codec.options.planes] = counts.get(codec.options.planes, 0) + 1
        return counts

    @property
    def outliers(self) -> dict[float, int]:
        """How many matrices keep which share of outliers, those with none left out."""
        shares = [c.outlier_ratio for c in self.codecs.values() if isinstance(c, Planes | Outlier1)]
        return {share: shares.count(share) for share in sorted(set(shares) - {0.0})}


Sized = Callable[[Mapping[str, Codec]], Plan]  # what codecs come to


def plan(
    spec: ModelSpec,
    dtypes: Mapping[str, str],
    companion_bytes: int,
    options: CodecOptions,
    storage_bytes: int | None,
    seed: int = 0,
    goal: Goal | None = None,
) -> Plan:
    """The best plan within `storage_bytes`; without a limit, the fixed or default planes, or the
    best in as many bytes.

    dtypes: stored type of every tensor. goal: what matrices cost; None before it is known, when
    planes are even but for a fixed priority. Raises BudgetError with the least feasible size. A
    plan fits when its `size_bytes_max` does, so that the written file holds the limit too.
    """

    def sized(codecs: Mapping[str, Codec]) -> Plan:
        records = record_plans(spec, dtypes, codecs, seed)
        expected, longest = (
            plan_layout(each, file_meta(seed)).file_bytes + companion_bytes
            for each in (records, _longest_indices(records))
        )
        return Plan(codecs, expected, longest)

    fixed = options.codec != "planes" or options.planes is not None
    if fixed or (storage_bytes is None and not (goal and goal.nats)):
        default = sized(uniform(spec, options, options.planes or PLANES_DEFAULT))
        _require(default, storage_bytes, spec)
        if fixed or goal is None:
            return default
        storage_bytes = default.size_bytes_max
    rungs = [uniform(spec, options, planes) for planes in range(1, PLANES_MOST + 1)]
    return choose(spec, sized, rungs, storage_bytes, goal)


def choose(
    spec: ModelSpec,
    sized: Sized,
    rungs: Sequence[Mapping[str, Codec]],
    storage_bytes: int | None,
    goal: Goal | None,
) -> Plan:
    """The best plan within `storage_bytes`, which is None only where a goal ends the spending; no
    matrix gets more planes than on the last rung.

    rungs: ever more planes, the first the least there is. Raises BudgetError with its size.
    """
    best = sized(rungs[0])
    _require(best, storage_bytes, spec)
    most = {name: c.options.planes for name, c in rungs[-1].items() if isinstance(c, Planes)}
    if goal is not None:
        return _spend(spec, sized, _one_plane(rungs[0]), storage_bytes, goal, most)
    assert storage_bytes is not None
    for codecs in rungs[1:]:
        candidate = sized(codecs)
        if candidate.size_bytes_max > storage_bytes:
            return _promote(spec, sized, best, storage_bytes, most)
        best = candidate
    return best


def _one_plane(codecs: Mapping[str, Codec]) -> dict[str, Codec]:
    """Every matrix that has planes with one."""
    return {
        name: replace(codec, options=replace(codec.options, planes=1))
        if isinstance(codec, Planes)
        else codec
        for name, codec in codecs.items()
    }


def _spend(
    spec: ModelSpec,
    sized: Sized,
    least: Mapping[str, Codec],
    storage_bytes: int | None,
    goal: Goal,
    most: Mapping[str, int],
) -> Plan:
    """Planes where their bytes save most, within the budget and `most` of each matrix, until the
    goal is reached."""
    if storage_bytes is None:
        return sized(spent(spec, least, None, goal.sensitivity, most, goal.nats, goal.kept))
    left = storage_bytes - sized(least).size_bytes_max
    while True:
        found = sized(spent(spec, least, left, goal.sensitivity, most, goal.nats, goal.kept))
        if found.size_bytes_max <= storage_bytes:
            return found
        left -= found.size_bytes_max - storage_bytes  # extents are aligned, and the index grew


def _require(found: Plan, storage_bytes: int | None, spec: ModelSpec) -> None:
    needed = found.size_bytes_max
    if storage_bytes is not None and needed > storage_bytes:
        bits = 8 * needed / parameter_count(spec)
        raise BudgetError(
            f"--storage-gb {storage_bytes / GIGABYTE:g}: the smallest such artefact needs "
            f"{needed / GIGABYTE:.9f} GB ({bits:.2f} bits per weight)"
        )


def uniform(spec: ModelSpec, options: CodecOptions, planes: int) -> dict[str, Codec]:
    """Codecs of all matrices, with that many planes in the linear ones."""
    linear: Codec = (
        Planes(PlaneOptions(planes, options.window, options.block), options.fixed_outliers)
        if options.codec == "planes"
        else BASELINES[options.codec]
    )
    if isinstance(linear, Outlier1) and options.fixed_outliers:
        linear = replace(linear, outlier_ratio=options.fixed_outliers)
    codecs: dict[str, Codec] = {}
    for tensor in all_tensors(spec):
        if tensor.role in LINEAR_ROLES:
            codecs[tensor.name] = linear
        elif tensor.role in (Role.EMBEDDING, Role.HEAD):
            looked_up_only = tensor.role is Role.EMBEDDING and not spec.tied_head
            codecs[tensor.name] = _top_codec(options, planes, looked_up_only)
    return codecs


def _top_codec(options: CodecOptions, planes: int, looked_up_only: bool) -> Codec:
    """Codec of the embedding and the head. The naive baselines keep them at 8 bits: a model whose
    head is one bit says nothing about its layers."""
    if options.embedding != "planes":
        return BASELINES[options.embedding]
    if options.codec != "planes":
        return BASELINES["raw" if options.codec == "raw" else "int8"]
    more = min(planes + EMBEDDING_PLANES_MORE, PLANES_MOST)
    # A head is a matrix like any other. Rows that are only looked up lie in low tiles.
    tile_rows = ROW_TILE_ROWS if looked_up_only else TILE_ROWS
    return Planes(PlaneOptions(more, options.window, options.block, tile_rows))


def _promote(
    spec: ModelSpec, sized: Sized, base: Plan, size_bytes_max: int, most: Mapping[str, int]
) -> Plan:
    """One more plane for matrices in order of priority, as long as the artefact fits."""
    best = base
    for tensor in _by_priority(spec):
        codec = best.codecs.get(tensor.name)
        if not isinstance(codec, Planes) or codec.options.planes == most[tensor.name]:
            continue
        more = replace(codec, options=replace(codec.options, planes=codec.options.planes + 1))
        trial = sized({**best.codecs, tensor.name: more})
        if trial.size_bytes_max <= size_bytes_max:
            best = trial
    return best


def _by_priority(spec: ModelSpec) -> list[TensorSpec]:
    """Linear matrices by role, then from both ends of the stack inwards."""

    def rank(tensor: TensorSpec) -> tuple[int, int]:
        assert tensor.layer is not None
        ends = min(tensor.layer, spec.layers - 1 - tensor.layer)
        return PRIORITY.index(tensor.role), ends

    return sorted((t for t in all_tensors(spec) if t.role in LINEAR_ROLES), key=rank)


def input_name(tensor: TensorSpec) -> str:
    """Record of the rotation a matrix reads; embedding and head have their own."""
    if tensor.layer is None:
        return f"{tensor.name}.in"
    return f"layers.{tensor.layer}.{SITE_OF_ROLE[tensor.role].value}"


def file_meta(seed: int) -> dict[str, int]:
    """The object for the layers above in the weights file."""
    return {"seed": seed}


def file_tensors(spec: ModelSpec) -> list[TensorSpec]:
    """All tensors in the order of the file: that of a sweep, a tied embedding where the head is."""
    tensors = list(all_tensors(spec))
    return [*tensors[1:], tensors[0]] if spec.tied_head else tensors


def record_plans(
    spec: ModelSpec, dtypes: Mapping[str, str], codecs: Mapping[str, Codec], seed: int = 0
) -> list[RecordPlan]:
    """Records in the order of the file; every layer is a run."""
    records: list[RecordPlan] = []
    seen: set[str] = set()
    layer: int | None = -1
    for tensor in file_tensors(spec):
        first = len(records)
        dtype, codec = dtypes[tensor.name], codecs.get(tensor.name)
        if codec is None:
            extents = {"data": tensor.count * STORED_BYTES[dtype]}
            attributes: dict[str, int | float | str] = {"dtype": dtype, "count": tensor.count}
            records.append(RecordPlan(tensor.name, "vector", attributes, extents))
        else:
            rows, cols = tensor.shape
            if isinstance(codec, Planes) and (name := input_name(tensor)) not in seen:
                seen.add(name)
                attributes = {"cols": cols, "seed": input_seed(name, seed)}
                records.append(RecordPlan(name, "input", attributes, {"scale": 2 * cols}))
            attributes = _attributes(codec, tensor, dtype)
            extents = codec.extent_bytes(rows, cols, dtype)
            records.append(RecordPlan(tensor.name, codec.name, attributes, extents))
        if tensor.layer != layer:
            records[first] = replace(records[first], begins_run=True)
            layer = tensor.layer
    return records


def _longest_indices(records: list[RecordPlan]) -> list[RecordPlan]:
    """The same records with every index of outliers as long as it can be: one skip for each SKIP
    columns of a row, or 16 bits an outlier (codec/outliers.py)."""
    found = []
    for record in records:
        extents = dict(record.extents)
        if "outlier_index" in extents:
            rows, cols, count = (int(record.attributes[k]) for k in ("rows", "cols", "outliers"))
            extents["outlier_index"] = min(2 * count, count + rows * ((cols - 1) // SKIP))
        found.append(replace(record, extents=extents))
    return found


def _attributes(codec: Codec, tensor: TensorSpec, dtype: str) -> dict[str, int | float | str]:
    """Attributes as long as the real ones: the index is part of the size."""
    rows, cols = tensor.shape
    found: dict[str, int | float | str] = {"rows": rows, "cols": cols}
    if isinstance(codec, Raw16):
        found["dtype"] = dtype
    ratio = codec.outlier_ratio if isinstance(codec, Planes | Outlier1) else 0.0
    if isinstance(codec, Planes):
        tiling = codec.options.tiling(rows, cols)
        found |= {
            "window": codec.options.window, "planes": tiling.planes,
            "tile_rows": tiling.tile_rows, "extent_rows": tiling.extent_rows,
            "input": input_name(tensor),
        }  # fmt: skip
    if ratio:
        found |= {
            "outliers": round(ratio * rows * cols), "outlier_dtype": dtype, "outlier_index": "gaps"
        }  # fmt: skip
    return found
