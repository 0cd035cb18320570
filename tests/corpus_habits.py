"""
Why a recorded request is not ours: what clients do by choice, or by the limits of a recording.

Each *habit* is a rule that takes two requests that differ, and changes one of them as that habit would. It explains the
difference only where both are equal after it; a difference that no few habits explain together is a fault, or a new habit.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import attrs
from corpus_wires import Part, Row, joined, meaning, offered, to_blocks

if TYPE_CHECKING:
    from collections.abc import Callable


def item_ids(row: Row) -> dict[str, str]:
    """Return which calls the items of an answer are: the call's id by the item's."""
    found: dict[str, str] = {}

    def note(value: Row) -> Row:
        if isinstance(value.get("call_id"), str) and isinstance(value.get("id"), str):
            found[value["id"]] = value["call_id"]
        return value

    body = row["response"]["body"]
    for line in body.splitlines() if row["sse"] else [body]:
        if "call_id" in line:
            json.loads(line.removeprefix("data:"), object_hook=note)
    return found


@attrs.frozen
class Case:
    """Two requests that differ, and the exchange before them."""

    before: Row
    row: Row
    ours: list[Part]
    theirs: list[Part]


def _without(parts: list[Part], known: list[Part], role: str, kind: str) -> list[Part]:
    """Return the parts without those of a kind that the other side does not have."""
    return [part for part in parts if (part.role, part.kind) != (role, kind) or part in known]


def _without_calls(parts: list[Part], known: list[Part]) -> list[Part]:
    """Return the parts without the calls, and their results, that the other side does not have."""
    ids = {part.id for part in known}
    return [part for part in parts if part.kind not in {"call", "result"} or part.id in ids]


def _dropped_text(case: Case) -> Case:
    return attrs.evolve(case, ours=_without(case.ours, case.theirs, "assistant", "text"))


def _dropped_reasoning(case: Case) -> Case:
    return attrs.evolve(case, ours=_without(case.ours, case.theirs, "assistant", "reasoning"))


def _dropped_calls(case: Case) -> Case:
    return attrs.evolve(case, ours=_without_calls(case.ours, case.theirs))


def _dropped_citations(case: Case) -> Case:
    if any(part.kind == "cited" for part in case.theirs):
        return case
    ours = [Part(part.role, "text", part.value[0]) if part.kind == "cited" else part for part in case.ours]
    return attrs.evolve(case, ours=ours)


def _added_text(case: Case) -> Case:
    return attrs.evolve(case, theirs=_without(case.theirs, case.ours, "assistant", "text"))


def _added_calls(case: Case) -> Case:
    return attrs.evolve(case, theirs=_without_calls(case.theirs, case.ours))


def _added_instructions(case: Case) -> Case:
    head = list(itertools.takewhile(lambda part: part.role in {"request", "system"}, case.theirs))
    rest = [part for part in case.theirs[len(head) :] if part.role != "system"]
    return attrs.evolve(case, theirs=head + rest)


def _changed_items(case: Case) -> Case:
    ours, theirs = case.ours, case.theirs
    return attrs.evolve(
        case,
        ours=_without(ours, theirs, "assistant", "other"),
        theirs=_without(theirs, ours, "assistant", "other"),
    )


def _changed_calls(case: Case) -> Case:
    def bare(part: Part) -> Part:
        return attrs.evolve(part, value=(*part.value[:2], {})) if part.kind == "call" else part

    return attrs.evolve(case, ours=[*map(bare, case.ours)], theirs=[*map(bare, case.theirs)])


def _item_ids(case: Case) -> Case:
    ids = item_ids(case.before)
    return attrs.evolve(case, theirs=[attrs.evolve(part, id=ids.get(part.id, part.id)) for part in case.theirs])


def _scrubbed_ids(case: Case) -> Case:
    ours, theirs = ([part.id for part in side if part.kind == "call"] for side in (case.ours, case.theirs))
    if len(ours) != len(theirs) or not all("REDACTED" in each for each in theirs):
        return case
    ids = dict(zip(ours, theirs, strict=True))
    return attrs.evolve(case, ours=[attrs.evolve(part, id=ids.get(part.id, part.id)) for part in case.ours])


def _unsealed(case: Case) -> Case:
    """Leave out reasoning items that only name their id: a server that keeps answers has the rest."""
    if case.row["wire"] != "openai_responses":
        return case
    theirs = [part for part in case.theirs if part.kind != "reasoning" or part.value[0] or part in case.ours]
    return attrs.evolve(case, theirs=theirs)


def _told_media(case: Case) -> Case:
    def told(part: Part) -> Part:
        if part in case.ours:
            return part
        if part.kind == "result":
            is_error, content = part.value
            return attrs.evolve(part, value=(is_error, joined([*map(told, content)])))
        if part.kind not in {"image", "document", "audio"}:
            return part
        (block,) = to_blocks([part], "")
        return Part(part.role, "text", f"Unsupported {part.kind} ({block.mime_type})")

    return attrs.evolve(case, theirs=[*map(told, case.theirs)])


def _no_object(case: Case) -> Case:
    def mended(part: Part) -> Part:
        if part.kind != "call" or isinstance(part.value[1], dict):
            return part
        name, arguments, extras = part.value
        raw = arguments if isinstance(arguments, str) else json.dumps(arguments)
        return attrs.evolve(part, value=(name, {"INVALID_JSON": raw}, extras))

    return attrs.evolve(case, theirs=[*map(mended, case.theirs)])


def _undefined(case: Case) -> Case:
    names = {tool["name"] for tool in offered(case.before["request"]["json"])}
    called = {part.id for part in case.ours if part.kind == "call" and part.value[0] not in names}
    return _with_results(case, lambda ours, _: ours.id in called and _says(ours, "unknown tool:"))


def _unfit(case: Case) -> Case:
    return _with_results(case, lambda ours, _: _says(ours, "invalid input:"))


def _with_results(case: Case, are_meant: Callable[[Part, Part], bool]) -> Case:
    """Put their results in the place of ours, where `are_meant(ours, theirs)`."""
    theirs = {part.id: part for part in case.theirs if part.kind == "result"}
    pairs = [(part, theirs.get(part.id, part)) for part in case.ours]
    ours = [other if part.kind == "result" and are_meant(part, other) else part for part, other in pairs]
    return attrs.evolve(case, ours=ours)


def _says(result: Part, start: str) -> bool:
    content: list[Part] = result.value[1]
    return any(part.kind == "text" and part.value.startswith(start) for part in content)


HABITS: dict[str, Callable[[Case], Case]] = {
    "the client dropped the answer's text": _dropped_text,
    "the client did not send reasoning back": _dropped_reasoning,
    "the client dropped some of the calls": _dropped_calls,
    "the client dropped citations": _dropped_citations,
    "the client spoke for the model": _added_text,
    "the client put in calls of its own": _added_calls,
    "the client gave instructions in mid-conversation": _added_instructions,
    "the client changed the provider's own items": _changed_items,
    "the client changed what else a call carries": _changed_calls,
    "the client names calls by their items' ids": _item_ids,
    "we rewrite call ids for the vendor; those recorded are scrubbed": _scrubbed_ids,
    "we send no reasoning without its seal; the server had kept it": _unsealed,
    "we only tell of media that the provider's flags exclude": _told_media,
    "we wrap arguments that are no object": _no_object,
    "we do not know a tool that the request did not define": _undefined,
    "we word it differently that arguments do not fit": _unfit,
}
REFUSED = "the API refused the recorded request"
REWRITTEN = "the client changed earlier messages"
UNEXPLAINED = "NOT EXPLAINED"


def explain(case: Case) -> str:
    """Return the fewest habits that make the two requests equal; or, of requests that cannot be equal, why."""
    if case.row["response"]["status"] >= 400:
        return REFUSED
    for names in itertools.chain.from_iterable(itertools.combinations(HABITS, count) for count in (1, 2, 3, 4)):
        tried = case
        for name in names:
            tried = HABITS[name](tried)
        if joined(tried.ours) == joined(tried.theirs):
            return " + ".join(names)
    return REWRITTEN if _is_rewritten(case) else UNEXPLAINED


def _is_rewritten(case: Case) -> bool:
    """Whether a request does not begin with what the one before it has said."""
    earlier = [part for part in meaning(case.row["wire"], case.before["request"]["json"]) if part.role != "request"]
    return [part for part in case.theirs if part.role != "request"][: len(earlier)] != earlier
