"""What a store keeps, and what it has to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

from .._util import JSONObject

if TYPE_CHECKING:
    from collections.abc import Sequence


@attrs.frozen
class Record:
    """
    One entry in the log of a session.

    Attributes:
        seq: Its number in the session: 1, 2, 3 and so on, rising also across rewrites.
        kind: The writer's word for what it is. A store does not look at it.
        data: A JSON object. A store keeps it as JSON text: what is written and what is read are never the same object, a
            tuple comes back as a list, and the lone half of a surrogate pair, which UTF-8 cannot carry, as U+FFFD.
    """

    seq: int
    kind: str
    data: JSONObject


class SessionStore(Protocol):
    """
    Keeps a log of records for each session.

    What it is asked to do, it does in the order in which it was asked, reads included. A session without records is one that it
    does not know. One writer at a time goes on with a session, and a store tells when there are two:

    * a record whose number is stored already with equal content is left as is, so that a write may be repeated;
    * one whose number is stored with other content, or was replaced, is refused: somebody else writes this session;
    * an `append` goes on with the number after the last one. Only a `rewrite` may leave a gap, upwards.

    A write is done whole or not at all. Every method raises `StoreError` where it fails, and the store goes on.
    """

    async def load(self, session_id: str) -> Sequence[Record]:
        """Return the records of a session in the order of `seq`; none if it is not known."""
        ...

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        """
        Add records. When it returns they are acknowledged: as durable as the store was told to make them.

        A cancel, or a time-out, leaves open whether they are written; it leaves none of them torn.
        """
        ...

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        """Put records in the place of all earlier ones, at once; without any, do the same as `delete`."""
        ...

    async def sessions(self) -> Sequence[str]:
        """Return the ids of all sessions, sorted."""
        ...

    async def delete(self, session_id: str) -> None:
        """Forget a session; one that is not known is no error."""
        ...
