"""Convert batches (a dict of lists or an Arrow table) to rows and back; types of new fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..errors import DataError, SettingsError, needing
from ..types import Sample

NewFields = Mapping[str, str]
"""Fields a run adds to the rows, and their content: `text`, `captions` (a list of texts) or `failure`."""


def _text() -> Any:
    import pyarrow as pa

    return pa.string()


def _captions() -> Any:
    import pyarrow as pa

    return pa.list_(pa.string())


def _failure() -> Any:
    import pyarrow as pa

    return pa.struct({"kind": pa.string(), "message": pa.string(), "video_index": pa.int64()})


NEW_FIELD_TYPES: dict[str, Callable[[], Any]] = {"text": _text, "captions": _captions, "failure": _failure}
"""Content of a new field (see `NewFields`) to its Arrow type."""


def is_table(batch: Any) -> bool:
    """Whether a batch is an Arrow table or record batch."""
    return hasattr(batch, "to_pydict") and hasattr(batch, "schema")


def batch_to_rows(batch: Any) -> list[Sample]:
    """The rows of a batch.

    Raises:
        DataError: the lists differ in length.
    """
    columns = batch.to_pydict() if is_table(batch) else dict(batch)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the lists of a batch must have equal lengths; got {lengths}")
    rows = next(iter(lengths.values()), 0)
    return [{name: values[i] for name, values in columns.items()} for i in range(rows)]


def batch_fields(batch: Any, *, made: Sequence[Sample], extra: Sequence[str]) -> list[str]:
    """Field names of the output: those of the input, then new ones in order of appearance."""
    names = batch.schema.names if is_table(batch) else list(batch)
    fields = dict.fromkeys([*names, *extra])
    for sample in made:
        fields.update(dict.fromkeys(sample))
    return list(fields)


def fields_until(wanted: str, rows: Iterable[Sample]) -> list[str]:
    """Field names of rows, read up to the first row that has the field `wanted`."""
    seen: dict[str, None] = {}
    for row in rows:
        seen.update(dict.fromkeys(row))
        if wanted in seen:
            break
    return list(seen)


def rows_to_batch(rows: Sequence[Sample], fields: Sequence[str], *, like: Any, new_fields: NewFields) -> Any:
    """Rows as a batch of the same kind as `like`; Arrow types are kept, and new fields have their types even if every
    value is null."""
    columns = {name: [row.get(name) for row in rows] for name in fields}
    if not is_table(like):
        return columns
    import pyarrow as pa

    known = {field.name: field.type for field in like.schema}
    known |= {name: NEW_FIELD_TYPES[kind]() for name, kind in new_fields.items() if kind != "text"}
    return pa.table({name: _array(values, known.get(name), pa) for name, values in columns.items()})


def _array(values: list[Any], type_: Any, pa: Any) -> Any:
    """An array of the known type, or of the inferred one if the known type is null."""
    return pa.array(values) if type_ is None or pa.types.is_null(type_) else pa.array(values, type=type_)


def check_types(schema: Any, new_fields: NewFields) -> None:
    """Reject a field to be written that exists with another type: its values would be lost.

    Args:
        schema: the input's Arrow schema.
        new_fields: the fields the run writes.

    Raises:
        SettingsError: names the field and its type.
    """
    import pyarrow as pa

    for name, kind in new_fields.items():
        if kind == "text" or name not in schema.names:
            continue
        type_, wanted = schema.field(name).type, NEW_FIELD_TYPES[kind]()
        if not (pa.types.is_null(type_) or _is_like(type_, wanted, pa)):
            raise SettingsError(
                f"the data set has a field {name!r} of type {type_}, but the run would write {wanted} there; set "
                "caption_key, failure_key, finish_reason_key or reasoning_key to another name"
            )


def _is_like(type_: Any, wanted: Any, pa: Any) -> bool:
    """Whether a type is equivalent to the wanted one, large variants included."""
    if pa.types.is_struct(wanted):
        return pa.types.is_struct(type_) and {f.name for f in type_} == {f.name for f in wanted}
    if not (pa.types.is_list(type_) or pa.types.is_large_list(type_)):
        return False
    held = type_.value_type
    return bool(pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_null(held))


def output_features(features: Mapping[str, Any], new_fields: NewFields) -> Any:
    """`datasets` features of the operator's output.

    Raises:
        SettingsError: a new field already exists with another type.
    """
    with needing("datasets", purpose="captioning a datasets.Dataset"):
        from datasets import Features
        from datasets.features.features import generate_from_arrow_type

    check_types(Features(features).arrow_schema, new_fields)
    made = dict(features)
    for name, kind in new_fields.items():
        if kind != "text" or name not in made or getattr(made[name], "dtype", None) == "null":
            made[name] = generate_from_arrow_type(NEW_FIELD_TYPES[kind]())
    return Features(made)
