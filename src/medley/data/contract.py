"""A table's columns against the contract, and its shards against each other: compatible, needs a mapping, or breaking."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import pyarrow as pa
import pyarrow.compute as pc

from medley.schema import AUDIO, IMAGE, INTERACTIONS_SCHEMA, ITEM_ID, TEXT, USER_ID, InputError

CONTRACTS: Mapping[str, pa.Schema] = {
    "items": pa.schema(
        [pa.field(ITEM_ID, pa.string(), nullable=False), pa.field(TEXT, pa.string()), pa.field(IMAGE, pa.binary()), pa.field(AUDIO, pa.binary())]
    ),
    "interactions": INTERACTIONS_SCHEMA,
    "users": pa.schema([pa.field(USER_ID, pa.string(), nullable=False)]),
}
"""table → the columns with a fixed meaning; the fields that are not nullable are required"""


def unify(table: str, shards: Sequence[tuple[str, pa.Schema]]) -> tuple[pa.Schema, list[str]]:
    """(the schema that every shard of a table is read as, warnings). shards: (name, its schema).

    Compatible: a missing column that may be null; dictionary, large and view forms; other integer and float widths; other time units.
    Needs a mapping (InputError): a column that is missing where another's name is close to it. Breaking (InputError): another type, a column
    twice, no id.
    """
    contract, warnings = CONTRACTS[table], []
    plain = [(name, pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])) for name, schema in shards]
    for name, schema in plain:
        _check_shard(table, name, schema)
    unified, first = pa.schema([]), plain[0][0]
    for name, schema in plain:
        free = pa.schema([field for field in schema if field.name not in contract.names])
        try:
            unified = pa.unify_schemas([unified, free], promote_options="permissive")
        except pa.ArrowException as error:
            before = {field.name: field.type for field in unified}
            changed = [f"{field.name}: {field.type} (before: {before[field.name]})" for field in free if before.get(field.name, field.type) != field.type]
            raise InputError(f"shard '{name}' differs in {', '.join(changed)}", f"the types of '{first}'", "write all shards with one schema") from error
    all_names = {column for _, schema in plain for column in schema.names}
    for name, schema in plain:
        absent = sorted(all_names - set(schema.names))
        if absent:
            warnings.append(f"shard '{name}' has no column {', '.join(absent)}: read as null")
    if table == "interactions":
        warnings += [f"column '{column}' of {table} has no meaning here and is not read" for column in sorted(all_names - set(contract.names))]
    known = [field.with_nullable(True) for field in contract if field.name in all_names]
    by_name = {field.name: field for field in [*known, *unified]}
    order = dict.fromkeys(column for _, schema in plain for column in schema.names)
    return pa.schema([by_name[column] for column in order]), warnings


def conform(piece: pa.Table, schema: pa.Schema) -> pa.Table:
    """The piece with the columns of `schema`, cast; a column it lacks is null."""
    columns = []
    for field in schema:
        if field.name not in piece.column_names:
            columns.append(pa.nulls(piece.num_rows, field.type))
            continue
        column = piece[field.name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_timestamp(column.type) and pa.types.is_timestamp(field.type):
            column = _within_microseconds(column)
        columns.append(column if column.type == field.type else column.cast(field.type, safe=False))
    return pa.table(columns, schema=schema)


def _within_microseconds(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times cut to what microseconds can say: a wrapped one would look like a good one, a cut one is quarantined."""
    factor = {"s": 1_000_000, "ms": 1000}.get(times.type.unit, 1)
    limit = (2**63 - 1) // factor
    cut = pc.min_element_wise(pc.max_element_wise(times.cast(pa.int64()), -limit, skip_nulls=False), limit, skip_nulls=False)
    return cut.cast(times.type)


def plain_type(type_: pa.DataType) -> pa.DataType:
    """The type without dictionary, large and view forms."""
    if pa.types.is_dictionary(type_):
        return plain_type(type_.value_type)
    if pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_):
        return pa.binary()
    return type_


def _check_shard(table: str, name: str, schema: pa.Schema) -> None:
    twice = sorted({column for column in schema.names if schema.names.count(column) > 1})
    if twice:
        raise InputError(f"shard '{name}' has the column '{twice[0]}' twice", "every column once", "rename or drop one of them")
    contract = CONTRACTS[table]
    others = [column for column in schema.names if column not in contract.names]
    for field in contract:
        if field.name in schema.names:
            if not _may_become(schema.field(field.name).type, field.type):
                raise InputError(f"column '{field.name}' of '{name}' has type {schema.field(field.name).type}", f"{field.type}", "cast the column")
            continue
        if not field.nullable:
            hint = get_close_matches(field.name, others, n=1)
            remedy = f"did you mean '{hint[0]}'? rename it" if hint else "add the column"
            raise InputError(f"shard '{name}' has columns {', '.join(schema.names)}", f"a column '{field.name}' ({field.type})", remedy)
        # Free columns of items and users may be called anything; in interactions a near name is a slip that would pass in silence.
        by_lower_case = {column.lower(): column for column in others} if table == "interactions" else {}
        hint = get_close_matches(field.name, list(by_lower_case), n=1, cutoff=0.8)
        if hint:
            found = by_lower_case[hint[0]]
            raise InputError(
                f"shard '{name}' has a column '{found}' and no '{field.name}'", "the names of the contract", f"rename it to '{field.name}', or drop it"
            )


def _may_become(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_timestamp(wanted):
        return pa.types.is_timestamp(found) and found.tz is not None  # any zone: Arrow stores UTC; without one the moment is unknown
    if pa.types.is_floating(wanted):
        return pa.types.is_floating(found) or pa.types.is_integer(found)
    return found == wanted
