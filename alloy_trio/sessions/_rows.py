"""
Records as JSON text, and the rules of their numbers: the same for each store, and without I/O.

A log has one writer. The numbers are how a second one is noticed: both go on from the same last number, so one of them finds
it taken, by other content. Equal content is a write that came twice (the first was not acknowledged in time, and arrived after
all). A number that leaves a gap says that a write in between has failed: what follows it is refused, so that a log is, at any
moment, a beginning of what its writer wrote.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from .._errors import StoreError
from .._util import without_surrogates
from ._record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST = 2**63  # numbers below it fit SQLite's integers


@attrs.frozen
class Row:
    """A record with its data as JSON text."""

    seq: int
    kind: str
    data: bytes


def check_id(session_id: Any) -> None:
    """Raise `StoreError` if this cannot be the id of a session."""
    if not isinstance(session_id, str) or not session_id or not _is_unicode(session_id):
        raise StoreError(f"session id {session_id!r:.100} has to be text that is not empty and can be written as UTF-8")


def to_rows(session_id: str, records: Sequence[Record]) -> list[Row]:
    """Encode records, which may change afterwards. Raises `StoreError`, which never shows their content."""
    rows = [_to_row(session_id, record) for record in records]
    for before, row in itertools.pairwise(rows):
        if row.seq <= before.seq:
            raise StoreError(
                f"session {session_id!r}: record {row.seq} comes after record {before.seq}; numbers have to rise"
            )
    return rows


def to_record(row: Row) -> Record:
    """Decode a row. Raises `ValueError` if its data is no JSON object."""
    try:
        data = msgspec.json.decode(row.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its data is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError("its data is no JSON object")  # noqa: TRY004 - bad data
    return Record(row.seq, row.kind, data)


def is_same(one: Row | None, other: Row | None) -> bool:
    """Tell whether two rows say the same; keys may stand in any order."""
    if one is None or other is None or (one.seq, one.kind) != (other.seq, other.kind):
        return False
    return one.data == other.data or _sorted(one.data) == _sorted(other.data)


def to_append(session_id: str, rows: Sequence[Row], last: int, stored: Callable[[int], Row | None]) -> list[Row]:
    """
    Return the rows that an append has to write: those that are not stored yet.

    Args:
        session_id: For the message.
        rows: What is to be appended.
        last: The number of the last record stored; 0 if there is none.
        stored: Looks up a row by number.

    Raises:
        StoreError: The numbers do not go on from `last`, or stored ones have other content.
    """
    new = _not_stored(session_id, rows, last, stored)
    for row in new:
        if row.seq != last + 1:
            raise StoreError(
                f"session {session_id!r}: record {row.seq} does not go on from {last}, the last one stored: a write in between "
                "has failed, or the session was deleted; put all of it in place with rewrite()"
            )
        last = row.seq
    return new


def check_rewrite(session_id: str, rows: Sequence[Row], last: int, stored: Callable[[int], Row | None]) -> None:
    """Raise `StoreError` if `rows` cannot take the place of what is stored: as `to_append`, but a gap is no fault."""
    _not_stored(session_id, rows, last, stored)
    if rows and rows[-1].seq < last:
        raise _somebody_else(session_id, last)


def _not_stored(session_id: str, rows: Sequence[Row], last: int, stored: Callable[[int], Row | None]) -> list[Row]:
    for row in rows:
        if row.seq <= last and not is_same(row, stored(row.seq)):
            raise _somebody_else(session_id, row.seq)
    return [row for row in rows if row.seq > last]


def _somebody_else(session_id: str, seq: int) -> StoreError:
    return StoreError(
        f"session {session_id!r}: record {seq} is stored already, with other content, or was replaced: somebody else writes this "
        "session; let one agent at a time have it, and load it again before going on"
    )


def _to_row(session_id: str, record: Record) -> Row:
    seq: Any = record.seq
    kind: Any = record.kind
    data: Any = record.data
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 < seq < _MOST:
        raise StoreError(f"session {session_id!r}: the number of a record is 1, 2, 3 and so on, not {seq!r:.100}")
    if not isinstance(kind, str) or not _is_unicode(kind):
        raise StoreError(
            f"session {session_id!r}: the kind of record {seq} has to be text that can be written as UTF-8"
        )
    if not isinstance(data, dict):
        raise StoreError(
            f"session {session_id!r}: the data of record {seq} is no JSON object, but {type(data).__name__}"
        )
    try:
        return Row(seq, kind, _encode(data))
    except (TypeError, ValueError, RecursionError) as error:
        # The cause is left out: an error about text has that text.
        raise StoreError(
            f"session {session_id!r}: the data of record {seq} is no JSON data ({type(error).__name__}): give it objects, "
            "lists, texts, numbers, booleans and null only"
        ) from None


def _encode(data: Any) -> bytes:
    try:
        return msgspec.json.encode(data)
    except UnicodeEncodeError:
        return msgspec.json.encode(without_surrogates(data))


def _sorted(data: bytes) -> bytes:
    try:
        return msgspec.json.encode(msgspec.json.decode(data), order="sorted")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
