"""Convert rows to Arrow tables and back: types from values, widened where needed, errors that name the field.

A value that Python cannot hold (a time out of range, a text that is not UTF-8) stays an Arrow scalar, so that it is
written as it came.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from ..errors import DataError
from ..rows.columns import NEW_FIELD_TYPES, NewFields
from ..types import BadRow, Failure, Sample
from .base import BYTES_PER_VALUE, MAX_ROW_BYTES, too_large

PLAIN_EXTENSIONS = ("pyarrow", "datasets", "lance")
"""Packages whose extension types give plain values. Those of others may not: Ray's, which are registered as soon as Ray
Data is imported, unpickle data from a file."""


def plain(rows: Any) -> Any:
    """A table or a batch whose values are safe to read: types of other packages become their storage type."""
    schema = plain_schema(rows.schema)
    if schema is rows.schema or schema.equals(rows.schema):
        return rows
    columns = [column.cast(field.type) for column, field in zip(rows.columns, schema, strict=True)]
    return type(rows).from_arrays(columns, schema=schema)


def plain_schema(schema: Any) -> Any:
    """The schema of such a table."""
    import pyarrow as pa

    fields = [field.with_type(_plain_type(field.type)) for field in schema]
    return pa.schema(fields, metadata=schema.metadata) if fields != list(schema) else schema


def _plain_type(type_: Any) -> Any:
    import pyarrow as pa

    if isinstance(type_, pa.BaseExtensionType):
        is_known = type(type_).__module__.partition(".")[0] in PLAIN_EXTENSIONS
        return type_ if is_known else _plain_type(type_.storage_type)
    if pa.types.is_struct(type_):
        return pa.struct([_plain_field(field) for field in type_])
    if pa.types.is_map(type_):
        return pa.map_(_plain_field(type_.key_field), _plain_field(type_.item_field))
    if pa.types.is_dictionary(type_):
        return pa.dictionary(type_.index_type, _plain_type(type_.value_type), type_.ordered)
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_plain_field(type_.value_field), type_.list_size)
    for is_list, make in _LISTS.items():
        if getattr(pa.types, is_list)(type_):
            return getattr(pa, make)(_plain_field(type_.value_field))
    return type_


def _plain_field(field: Any) -> Any:
    return field.with_type(_plain_type(field.type))


_LISTS = {
    "is_list": "list_",
    "is_large_list": "large_list",
    "is_list_view": "list_view",
    "is_large_list_view": "large_list_view",
}
"""Arrow's test for a list type, and its constructor."""


def add_new_fields(schema: Any, new_fields: NewFields) -> Any:
    """A schema with the fields a run adds; an existing field keeps its type, unless it is null throughout."""
    import pyarrow as pa

    base = pa.schema([]) if schema is None else schema
    for name, kind in new_fields.items():
        field = pa.field(name, NEW_FIELD_TYPES[kind]())
        place = base.get_field_index(name)
        if place < 0:
            base = base.append(field)
        elif pa.types.is_null(base.field(place).type) or kind != "text":
            base = base.set(place, field)
    return base


def plain_rows(batches: Iterable[Any], *, where: str, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Sample]:
    """The rows of record batches or tables as Python values.

    A row with a value that Python cannot hold is a `BadRow`.

    Args:
        batches: what was read, in order.
        where: name of the file, for messages.
        max_row_bytes: the largest row that is turned into Python values.

    Raises:
        DataError: a row is larger.
    """
    first = 0
    for batch in map(plain, batches):
        yield from _rows_of_batch(batch, first, where, max_row_bytes)
        first += batch.num_rows


def _rows_of_batch(batch: Any, first: int, where: str, max_row_bytes: int) -> Iterator[Sample]:
    if not _is_within(batch, max_row_bytes):
        if batch.num_rows == 1:
            raise too_large(f"row {first} of {where!r} is larger", limit_bytes=max_row_bytes)
        for i in range(batch.num_rows):
            yield from _rows_of_batch(batch.slice(i, 1), first + i, where, max_row_bytes)
        return
    try:
        rows = batch.to_pylist()
    except MemoryError:
        raise
    except Exception:  # any type's conversion may raise: then its row is searched for
        rows = (_row_of(batch.slice(i, 1), first + i, where) for i in range(batch.num_rows))
    yield from rows


def _is_within(batch: Any, max_row_bytes: int) -> bool:
    """Whether all rows together are within the limit of one."""
    values = sum(_count(column) for column in batch.columns)
    return int(batch.nbytes) <= max_row_bytes and values <= max_row_bytes // BYTES_PER_VALUE


def _count(array: Any) -> int:
    """Number of values in an array, including those inside lists."""
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        return sum(map(_count, array.chunks))
    if isinstance(array, pa.StructArray):
        return len(array) + sum(map(_count, array.flatten()))
    if isinstance(array, pa.MapArray) and len(array):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return (
            len(array) + _count(array.keys.slice(first, last - first)) + _count(array.items.slice(first, last - first))
        )
    if isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)) and len(array):
        return len(array) + _count(array.flatten())
    return len(array)


def _row_of(batch: Any, number: int, where: str) -> Sample:
    """The only row of a batch; what Python cannot hold stays an Arrow scalar."""
    fields: Sample = {}
    problems = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            fields[name] = column[0].as_py()
        except MemoryError:
            raise
        except Exception as exc:  # each type has its own
            fields[name] = column[0]
            problems.append(f"field {name!r} ({column.type}) holds what Python cannot: {exc}")
    if not problems:
        return fields
    return BadRow(fields, failure=Failure("bad_sample", f"row {number} of {where!r}: {'; '.join(problems)}"))


def scalar_value(value: Any) -> Any:
    """An Arrow scalar as something that JSON can hold; any other value as it is.

    A text that is not UTF-8 gets lone surrogates for its bytes; a time out of range becomes its number.
    """
    arrow = sys.modules.get("pyarrow")
    if arrow is None or not isinstance(value, arrow.Scalar):
        return value
    if not value.is_valid:
        return None
    if isinstance(value, arrow.StructScalar):
        return {name: scalar_value(value[i]) for i, name in enumerate(field.name for field in value.type)}
    if isinstance(value, arrow.ListScalar | arrow.LargeListScalar | arrow.FixedSizeListScalar):
        return [scalar_value(one) for one in value.values]
    if isinstance(value, arrow.DictionaryScalar | arrow.ExtensionScalar):
        return scalar_value(value.value)
    with suppress(Exception):
        return value.as_py()
    if isinstance(value, arrow.StringScalar | arrow.LargeStringScalar | arrow.StringViewScalar):
        return value.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    return getattr(value, "value", None) if isinstance(getattr(value, "value", None), int) else str(value)


def merge_schemas(schemas: Sequence[Any], *, where: str) -> Any:
    """A schema that can hold the rows of all.

    Raises:
        DataError: two types of one field have no common type.
    """
    import pyarrow as pa

    try:
        return pa.unify_schemas(list(schemas), promote_options="permissive")
    except pa.ArrowException as exc:
        raise DataError(f"{where} have incompatible schemas: {exc}") from exc


def rows_to_table(rows: Sequence[Sample], known: Any, *, first_row: int, where: str) -> Any:
    """An Arrow table of rows.

    Args:
        rows: plain values; a field that a row lacks is null.
        known: schema of columns whose types are fixed, or at least as wide as this.
        first_row: index of the first row in its file, for error messages.
        where: name of the file, for error messages.

    Raises:
        DataError: values without a common type; the message names the field and rows.
    """
    import pyarrow as pa

    names = dict.fromkeys([*(name for row in rows for name in row), *known.names])
    fields, columns = [], []
    for name in _ordered(names, known):
        values = [row.get(name) for row in rows]
        place = known.get_field_index(name)
        try:
            column = _column(values, known.field(place).type if place >= 0 else None)
        except MemoryError:
            raise
        except Exception as exc:  # any value may make Arrow raise anything
            span = f"field {name!r} of rows {first_row} to {first_row + len(rows) - 1}"
            raise DataError(f"cannot write {span} to {where!r}: {exc}") from exc
        fields.append(known.field(place).with_type(column.type) if place >= 0 else pa.field(name, column.type))
        columns.append(column)
    return pa.table(columns, schema=pa.schema(fields, metadata=known.metadata))


def _ordered(names: dict[str, None], known: Any) -> list[str]:
    """Names in the rows' order, or in the known order if that has them all."""
    if all(name in known.names for name in names):
        return list(known.names)
    return list(names)


def _column(values: list[Any], known: Any) -> Any:
    """An array of the known type if the values fit, otherwise of the narrowest type that holds both."""
    import pyarrow as pa

    if known is not None and _fits(values, known):
        with suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
            return _array(values, known)
    values = [scalar_value(value) for value in values]
    array = _array(values, None)
    if known is not None:
        array = _array(values, _common_type(known, array.type))
    if not all(_is_kept(value, array.type) for value in values):
        raise TypeError("values of different kinds, such as texts and bytes, do not fit in one column")
    return array


def _common_type(left: Any, right: Any) -> Any:
    import pyarrow as pa

    schemas = [pa.schema([("value", type_)]) for type_ in (left, right)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _array(values: list[Any], type_: Any) -> Any:
    """An array built by Arrow; lone surrogates are escaped, empty objects become null (Parquet has none)."""
    import pyarrow as pa

    try:
        array = pa.array(values, type=type_)
    except UnicodeEncodeError:
        return _array([_replaced(value, _escaped) for value in values], type_)
    if contains(array.type, _is_empty_struct):
        return pa.array([_replaced(value, _none_if_empty) for value in values])
    return array


def _fits(values: Sequence[Any], type_: Any) -> bool:
    """Whether a type is settled and accepts the values as they are."""
    import pyarrow as pa

    return not contains(type_, pa.types.is_null) and all(_is_kept(value, type_) for value in values)


def _is_kept(value: Any, type_: Any) -> bool:
    """Whether a type keeps all of a value; if not, Arrow would silently drop keys and fractions."""
    import pyarrow as pa

    if value is None or (isinstance(value, pa.Scalar) and value.type == type_):
        return True
    if pa.types.is_struct(type_):
        children = {field.name: field.type for field in type_}
        return isinstance(value, dict) and all(
            key in children and _is_kept(item, children[key]) for key, item in value.items()
        )
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return isinstance(value, (list, tuple)) and all(_is_kept(item, type_.value_type) for item in value)
    return _is_scalar_kept(value, type_)


def _is_scalar_kept(value: Any, type_: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_integer(type_):
        return not isinstance(value, float) or value.is_integer()
    if pa.types.is_floating(type_):
        return not isinstance(value, bool)
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return isinstance(value, str)
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return isinstance(value, bytes)
    return True


def contains(type_: Any, test: Callable[[Any], bool]) -> bool:
    """Whether a type or any type inside it passes a test."""
    return test(type_) or any(contains(type_.field(i).type, test) for i in range(type_.num_fields))


def _is_empty_struct(type_: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(type_)) and type_.num_fields == 0


def _replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with a change made to it and to everything inside it, from the inside out."""
    if isinstance(value, dict):
        value = {change(key): _replaced(item, change) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        value = [_replaced(item, change) for item in value]
    return change(value)


def _escaped(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _none_if_empty(value: Any) -> Any:
    return None if value == {} else value
