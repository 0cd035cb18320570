"""
Are the requests right, too? Recorded conversations, had again by our loop, and what it asks compared with what was asked.

Of each recorded conversation we get the beginning, the answers and the tools' results; everything between the answers is
ours: `run` or `stream` over a network that gives the recorded answers, with tools that give the recorded results. A client's
new words are a new run in the same session. The n-th request of ours is then compared with the n-th recorded one, by meaning
(`corpus_wires`), and a difference is explained by what the recorded client did (`corpus_habits`). Behind a difference the
conversation goes on from the recorded request.

    python tests/corpus_requests.py [--wire anthropic] [--show 3]
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import logging
import operator
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import httpx
import trio
from corpus_habits import Case, explain, item_ids
from corpus_wires import Part, Row, meaning, offered, read, system_prompt, to_blocks, to_messages

from alloy_trio import Message, ProviderError, Session, Text, ToolContext, ToolError, run, stream
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat
from alloy_trio.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

CORPUS = Path(__file__).resolve().parents[1].parent / "shared" / "corpus"
ABSENT = "recorded traffic is not here: ../shared/corpus"
WIRES = ("anthropic", "openai_responses", "openai_chat")
AGREES = "agrees"
AGREES_ANEW = "agrees: what the user says there is a new run of the session"


def scorer() -> ModuleType:
    """Return the corpus's own `check.py`."""
    spec = importlib.util.spec_from_file_location("corpus_check", CORPUS / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@attrs.frozen
class Verdict:
    """
    What became of one recorded request.

    Attributes:
        row: The exchange.
        reason: That it agrees, or what the difference comes from.
        ours: What our request says that the recorded one does not; and in `theirs` the other way round.
        theirs: See `ours`.
    """

    row: Row
    reason: str
    ours: list[Part] = attrs.field(factory=list)
    theirs: list[Part] = attrs.field(factory=list)

    @property
    def agrees(self) -> bool:
        """Whether our request says what the recorded one says."""
        return self.reason in {AGREES, AGREES_ANEW}


def chains(wire: str) -> Iterator[list[Row]]:
    """Yield the conversations: runs of exchanges of which each but the first continues the one before it."""
    cassette = operator.itemgetter("source_repo", "group")
    rows: list[Row] = sorted(scorer().load(wire=wire), key=lambda row: (*cassette(row), row["index"]))
    chain = rows[:1]
    for row in rows[1:]:
        follows = cassette(row) == cassette(chain[-1]) and row["index"] == chain[-1]["index"] + 1
        if not (follows and row["continues_prev"]):
            yield chain
            chain = []
        chain.append(row)
    yield chain


async def verdicts(wire: str) -> list[Verdict]:
    """Have all recorded conversations of a wire again, and judge each request that continues one."""
    found = []
    for chain in chains(wire):
        if chain[0]["continues_prev"]:
            found.append(Verdict(chain[0], "the exchange before it is not in the corpus"))
        rest = chain
        while len(rest) > 1:
            judged = _judge(rest, await Replay(rest).drive())
            found += judged
            rest = rest[len(judged) :]
    return found


def _judge(chain: Sequence[Row], sent: Sequence[Row]) -> list[Verdict]:
    """Compare our requests with the recorded ones, up to the first that differs: behind it, it is another conversation."""
    found: list[Verdict] = []
    for before, row, body in zip(chain, chain[1:], sent[1:], strict=False):
        ours, theirs = (meaning(row["wire"], each) for each in (body, row["request"]["json"]))
        if ours == theirs:
            found.append(Verdict(row, AGREES_ANEW if news(before, row)[1] else AGREES))
            continue
        only_ours = [part for part in ours if part not in theirs]
        only_theirs = [part for part in theirs if part not in ours]
        return [*found, Verdict(row, explain(Case(before, row, ours, theirs)), only_ours, only_theirs)]
    return found


def news(before: Row, row: Row) -> tuple[list[Part], list[Part]]:
    """Return what the user's side added in a request: results of calls, and all else."""
    earlier, body = before["request"]["json"], row["request"]["json"]
    old, said = read(row["wire"], earlier), read(row["wire"], body)
    pairs = itertools.takewhile(lambda pair: pair[0].parts == pair[1].parts, zip(old, said, strict=False))
    same = len(list(pairs))
    if same < len(old) and not body.get("previous_response_id"):  # rewritten: all behind the last answer is new
        same = max((place for place, each in enumerate(said) if each.role == "assistant"), default=0)
    added = [part for each in said[same:] if each.role == "user" for part in each.parts]
    results = [part for part in added if part.kind == "result"]
    return results, [part for part in added if part.kind != "result"]


@attrs.define
class Replay:
    """A recorded conversation, had again: the network, the tools and the user of our loop."""

    chain: list[Row]
    sent: list[Row] = attrs.field(factory=list)
    name: str = ""  # the provider's
    results: dict[str, Part] = attrs.field(factory=dict)  # by the ids of the calls that were answered last

    async def drive(self) -> list[Row]:
        """Return the requests that we make, one for each of the chain."""
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._reply))
        provider = _provider(self.chain, client)
        self.name = provider.name
        first = self.chain[0]
        session = Session(messages=tuple(to_messages(first["wire"], first["request"]["json"], provider)))
        prompt = None
        while (begin := len(self.sent)) < len(self.chain):
            end = begin + 1
            while end < len(self.chain) and self._goes_on(end):
                end += 1
            await self._run(prompt, provider, session, max_turns=end - begin)
            assert len(self.sent) > begin, f"{self.chain[begin]['id']}: nothing was asked"
            _, words = self._news()
            prompt = Message.user(*to_blocks(words, provider.name)) if words else None
        return self.sent

    def _goes_on(self, place: int) -> bool:
        """Whether a request belongs to the run of the one before: the user says nothing, tools and prompt are the same."""
        before, row = self.chain[place - 1 : place + 1]
        fixed = [
            (offered(each["request"]["json"]), system_prompt(each["wire"], each["request"]["json"]))
            for each in (before, row)
        ]
        return fixed[0] == fixed[1] and not news(before, row)[1]

    async def _run(self, prompt: Message | None, provider: Any, session: Session, max_turns: int) -> None:
        row = self.chain[len(self.sent)]
        body = row["request"]["json"]
        options: Any = {
            "provider": provider,
            "session": session,
            "tools": [_tool(definition, self._execute) for definition in offered(body)],
            "system_prompt": system_prompt(row["wire"], body),
            "max_turns": max_turns,
        }
        try:
            if not row["streaming"]:
                await run(prompt, **options)
                return
            async with stream(prompt, **options) as events:
                async for _ in events:
                    pass
        except ProviderError:
            pass  # recorded, too: an error, a refusal, a call that was cut

    def _reply(self, request: httpx.Request) -> httpx.Response:
        row = self.chain[len(self.sent)]
        self.sent.append(json.loads(request.content))
        ids = item_ids(row)
        self.results = {ids.get(part.id, part.id): part for part in self._news()[0]}
        return httpx.Response(row["response"]["status"], content=row["response"]["body"].encode())

    def _news(self) -> tuple[list[Part], list[Part]]:
        """Return what the recorded user's side said to the last answer."""
        place = len(self.sent)
        return news(*self.chain[place - 1 : place + 1]) if place < len(self.chain) else ([], [])

    async def _execute(self, _: object, ctx: ToolContext) -> Any:
        """Give the result that the recorded client sent for this call."""
        if ctx.tool_use_id not in self.results:
            return "(no result was recorded)"
        is_error, content = self.results[ctx.tool_use_id].value
        blocks = list(to_blocks(content, self.name))
        if is_error:
            raise ToolError("".join(block.text for block in blocks if isinstance(block, Text)))
        return blocks or ""


def _provider(chain: Sequence[Row], client: httpx.AsyncClient) -> Anthropic | OpenAI | OpenAICompat:
    body = chain[0]["request"]["json"]
    options: Any = {"model": chain[0]["model"] or "m", "api_key": "key", "http_client": client}
    server_tools = [tool for tool in body.get("tools") or [] if not offered({"tools": [tool]})]
    match chain[0]["wire"]:
        case "anthropic":
            return Anthropic(**options, server_tools=server_tools)
        case "openai_responses":
            chained = any(row["request"]["json"].get("previous_response_id") for row in chain)
            previous = body.get("previous_response_id")
            return OpenAI(**options, server_tools=server_tools, store=chained or None, previous_response_id=previous)
    base_url, _, query = chain[0]["request"]["url"].partition("/chat/completions")
    if not urlsplit(base_url).scheme:  # scrubbed: it was a server on the recorder's own machine
        base_url = "http://localhost"
    return OpenAICompat(**options, base_url=base_url, chat_path=f"/chat/completions{query}")


def _tool(definition: Row, execute: Callable[..., object]) -> Tool:
    return Tool(
        name=definition["name"],
        description=definition.get("description") or "",
        input_schema=definition["schema"],
        execute=execute,
        strict=definition.get("strict") or None,
        defer_loading=definition.get("defer_loading") or False,
    )


def table(found: Sequence[Verdict]) -> str:
    """Return how many requests agree and what the rest is, wire by wire."""
    counts = Counter((verdict.reason, verdict.row["wire"]) for verdict in found)
    totals = Counter(verdict.reason for verdict in found)
    reasons = sorted(totals, key=lambda reason: (not reason.startswith(AGREES), -totals[reason]))
    lines = ["".join(f"{wire:>18}" for wire in WIRES)]
    lines += ["".join(f"{counts[reason, wire]:18}" for wire in WIRES) + f"  {reason}" for reason in reasons]
    agreed = sum(verdict.agrees for verdict in found)
    return "\n".join([*lines, f"{agreed} of {len(found)} requests agree ({agreed / len(found):.1%})"])


def difference(verdict: Verdict) -> str:
    """Return what a request of ours says differently."""
    row = verdict.row
    head = f"\n{row['id']} {row['wire']} {row['vendor']} {row['model']} {row['group']}\n  {verdict.reason}"
    sides = (("ours  ", verdict.ours), ("theirs", verdict.theirs))
    return "\n".join([head, *(f"  {name} {part}"[:400] for name, parts in sides for part in parts)])


async def _main(wires: Sequence[str], show: int) -> None:
    found = [verdict for wire in wires for verdict in await verdicts(wire)]
    print(  # noqa: T201 - it is a script
        table(found), *[difference(verdict) for verdict in found if not verdict.agrees][:show], sep="\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--wire", choices=WIRES, help="one of the three; all by default")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print so many of the differences")
    chosen = parser.parse_args()
    if not CORPUS.exists():
        sys.exit(ABSENT)
    logging.getLogger("alloy_trio").setLevel(logging.CRITICAL)  # tools that are not there, and the like
    trio.run(_main, [chosen.wire] if chosen.wire else WIRES, chosen.show)
