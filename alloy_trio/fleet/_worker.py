"""
The worker's end: takes requests to the agents it hosts, runs them, answers.

    take    XREADGROUP, then BEGIN: a request that is begun is ours, by a fence, for `visibility` seconds
    renew   three times in that, RENEW; a run whose hold was not renewed in time is cancelled, as somebody else may have it
    claim   twice in that, CLAIM: what nobody has renewed belongs to a worker that has died
    listen  cancels, on a stream of our own; RENEW tells of them too
    end     FINISH: the answer is kept, the request leaves the queue, and its submitters are told, in one step

Of two workers that have run a request, one has the current fence; the other's answer is refused.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio

from .._agent_config import AgentConfig
from .._errors import AlloyError, InvalidOption, RequestCancelled
from .._far import error_to_json, prompt_from_json, result_to_json
from .._open_agent import open_agent
from .._util import new_id, single
from ._errors import LeaseLost, RedisUnavailable
from ._job import Job, chat, is_deadly, poisoned
from ._names import PREFIX, URL, address, base_key, check_count, check_prefix, check_seconds, encode
from ._redis import NoGroup, open_link, text
from ._scripts import BEGIN, CLAIM, FINISH, GROUP, LEAVE, RELEASE, RENEW
from ._store import RedisStore, to_keep

if TYPE_CHECKING:
    from .._result import Result

_BLOCK: Final = 2.0  # seconds that one read waits
_AT_ONCE: Final = 4  # requests begun at once: what is asked may be large
_PAUSE: Final = 0.5  # seconds before Redis is asked again that was asked for long enough, or refuses at once
_GRACE: Final = 5.0  # seconds for what is left to tell Redis, once a worker is cancelled
_CANCELLED: Final = encode({"error": error_to_json(RequestCancelled("the request was cancelled before it was run"))})

logger = logging.getLogger("alloy_trio.fleet")


@attrs.frozen(kw_only=True)
class WorkerStatistics:
    """
    How a worker stands.

    Attributes:
        running: Requests that it has just now.
        answered: Those that it has answered.
        lost: Those that were taken from it, or may have been, so that it has ended them.
        released: Those that it gave back, as it was stopped.
    """

    running: int
    answered: int
    lost: int
    released: int


class Worker:
    """
    Hosts agents for a fleet: `await Worker(url, {"researcher": AgentConfig(…)}).serve()`, in as many processes as there are.

    Each request has an agent of its own, made of the configuration. One with a session goes on with its conversation, which is
    in Redis, under a lease: no two workers have a session at once.
    """

    def __init__(
        self,
        url: str = URL,
        agents: Mapping[str, AgentConfig] | None = None,
        *,
        concurrency: int = 16,
        visibility: float = 30.0,
        max_tries: int = 3,
        keep_sessions: float | None = None,
        prefix: str = PREFIX,
        patience: float = 10.0,
    ) -> None:
        """
        Say what it hosts.

        Args:
            url: Where Redis is.
            agents: Configurations by the name that submitters use.
            concurrency: How many requests run at once.
            visibility: Seconds after which the requests of a worker that has died are run by another.
            max_tries: How many workers may die of a request before it is given up.
            keep_sessions: Seconds for which a conversation is kept that nobody goes on with; None for ever.
            prefix: What all keys begin with; submitters have the same.
            patience: Seconds for which a Redis that cannot be used is asked again, before it is logged.

        Raises:
            InvalidOption: Something about the arguments.
        """
        if (
            not isinstance(agents, Mapping)
            or not agents
            or not all(isinstance(each, AgentConfig) for each in agents.values())
        ):
            raise InvalidOption("a worker needs agents to host: agents={'name': AgentConfig(provider=…)}")
        self.name: str = new_id()
        self._url = address(url)
        self._prefix = check_prefix(prefix)
        self._agents = {base_key(prefix, name): (name, config) for name, config in agents.items()}
        self._concurrency = check_count("concurrency", concurrency)
        self._visibility = check_seconds("visibility", visibility, 0.1)
        self._keep_sessions = to_keep("keep_sessions", keep_sessions)
        self._max_tries = check_count("max_tries", max_tries)
        self._poisoned = encode({"error": error_to_json(poisoned(max_tries))})
        self._patience = check_seconds("patience", patience)
        self._jobs: dict[tuple[str, str], Job] = {}
        self._limit = trio.CapacityLimiter(concurrency)
        self._room = trio.lowlevel.ParkingLot()
        self._taking = trio.CancelScope()
        self._is_serving = False
        self._troubles: set[str] = set()  # what Redis does not let us do just now
        self._answered = self._lost = self._released = 0

    async def serve(self, *, task_status: trio.TaskStatus[Worker] = trio.TASK_STATUS_IGNORED) -> None:
        """
        Take requests, until `stop` or a cancel. What runs when it is cancelled is given back, for another worker.

        A Redis that goes away later is waited for. When it has ended, it may be called again.

        Raises:
            InvalidOption: coredis is not installed, Redis may throw away what is queued, or it is called twice at once.
            RedisUnavailable: Redis cannot be reached.
        """
        if self._is_serving:
            raise InvalidOption("this worker serves already: make another one")
        self._is_serving = True
        try:
            await self._serve(task_status)
        except ExceptionGroup as group:
            raise single(group) from group.__cause__
        finally:
            self._is_serving, self._taking = False, trio.CancelScope()

    async def _serve(self, task_status: trio.TaskStatus[Worker]) -> None:
        async with open_link(self._url, self._patience) as link:
            self._link = link
            # Patient as long as what we hold is ours: a Redis that is away for less fails no run.
            self._store = RedisStore._over(link, self._prefix, self._keep_sessions, self._visibility)  # noqa: SLF001 - its own door
            await self._make_groups()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._renew)
                    nursery.start_soon(self._listen)
                    task_status.started(self)
                    async with trio.open_nursery() as runs:
                        with self._taking:
                            async with trio.open_nursery() as takers:
                                takers.start_soon(self._take, runs)
                                takers.start_soon(self._claim, runs)
                        with trio.move_on_after(_GRACE):
                            await self._leave()
                    nursery.cancel_scope.cancel()
            finally:
                with trio.move_on_after(_GRACE, shield=True):
                    await self._leave()

    def stop(self) -> None:
        """Take nothing more: `serve` ends with the last of what runs."""
        self._taking.cancel()

    def statistics(self) -> WorkerStatistics:
        """Return how it stands."""
        return WorkerStatistics(
            running=len(self._jobs), answered=self._answered, lost=self._lost, released=self._released
        )

    # Taking

    async def _make_groups(self) -> None:
        for base in self._agents:
            await self._link.run(GROUP, base)

    async def _take(self, runs: trio.Nursery) -> None:
        queues = [f"{base}:queue" for base in self._agents]
        while True:
            room = await self._wait_for_room()
            try:
                entries = await self._link.read_group(queues, "workers", self.name, max(1, room // len(queues)), _BLOCK)
                found: dict[str, list[str]] = {}
                for key, entry, request_id in entries:
                    found.setdefault(key.removesuffix(":queue"), []).extend((entry, request_id))
                for base, some in found.items():
                    await self._begin(base, some, runs)
            except NoGroup:  # Redis has lost all that it had
                await self._patiently_make_groups()
            except RedisUnavailable as error:
                self._note("take", error)
                await trio.sleep(_PAUSE)
            else:
                self._note("take")

    async def _patiently_make_groups(self) -> None:
        try:
            await self._make_groups()
        except RedisUnavailable as error:
            self._note("take", error)

    async def _wait_for_room(self) -> int:
        while len(self._jobs) >= self._concurrency:
            await self._room.park()
        return self._concurrency - len(self._jobs)

    async def _claim(self, runs: trio.Nursery) -> None:
        """Take over what a worker has left behind."""
        while True:
            await trio.sleep(self._visibility / 2)
            for base in self._agents:
                try:
                    while await self._claim_some(base, runs):
                        pass
                except NoGroup:
                    await self._patiently_make_groups()
                except RedisUnavailable as error:
                    logger.debug("worker %s takes nothing over: %s", self.name, error)

    async def _claim_some(self, base: str, runs: trio.Nursery) -> bool:
        """Take over as much as there is room for. Returns whether there may be more."""
        room = await self._wait_for_room()
        found = await self._link.run(CLAIM, base, self.name, round(self._visibility * 1000), room)
        await self._begin(base, [text(each) for each in found], runs)
        return len(found) >= 2 * room  # entries, each with its id

    async def _begin(self, base: str, some: list[str], runs: trio.Nursery) -> None:
        """Begin requests, given as entry, id, entry, id and so on. Raises RedisUnavailable."""
        pairs = zip(some[::2], some[1::2], strict=True)
        some = [each for pair in pairs if (base, pair[1]) not in self._jobs for each in pair]
        for at in range(0, len(some), 2 * _AT_ONCE):
            until = trio.current_time() + self._visibility
            few = some[at : at + 2 * _AT_ONCE]
            answers = self._poisoned, _CANCELLED
            begun = await self._link.run(BEGIN, base, self.name, new_id(), self._max_tries, *answers, *few)
            for id_, fence, body in begun:
                scope = trio.CancelScope(deadline=until)
                job = Job(base, self._agents[base][0], id_.decode(), fence, body, scope)
                self._jobs[base, job.id] = job
                runs.start_soon(self._perform, job)

    async def _leave(self) -> None:
        """Give back what calls that were cancelled have taken, or begun, without our hearing of it: all but what runs here."""
        for base in self._agents:
            try:
                ours = [job.id for job in self._jobs.values() if job.base == base]
                await self._link.run(LEAVE, base, self.name, _CANCELLED, *ours)
            except AlloyError as error:
                logger.warning("worker %s ends, and could not say so: %s", self.name, error)

    # A request

    async def _perform(self, job: Job) -> None:
        answer: tuple[str, bytes] | None = None
        is_told = False
        try:
            with job.scope:
                async with self._limit:
                    answer = await self._answer(job)
            if answer is None and job.is_cancelled:
                answer = "cancelled", _CANCELLED
            if answer is not None:
                await self._finish(job, answer)
                is_told = True
        finally:
            if not is_told:  # we are cancelled, or what we hold is lost
                with trio.move_on_after(_GRACE, shield=True):
                    await (self._give_back(job, sys.exception()) if answer is None else self._finish(job, answer))
            self._forget(job)

    def _forget(self, job: Job) -> None:
        if self._jobs.get((job.base, job.id)) is job:
            del self._jobs[job.base, job.id]
            self._room.unpark_all()

    async def _answer(self, job: Job) -> tuple[str, bytes] | None:
        """Run a request. Returns its state, and the answer; None if another worker is to run it."""
        try:
            return "done", encode({"result": result_to_json(await self._run(job))})
        except LeaseLost as error:
            logger.warning("request %s is given back: %s", job.id, error)
            return None
        except Exception as error:  # noqa: BLE001 - the answer to who waits
            error = single(error)
            state = "cancelled" if isinstance(error, RequestCancelled) else "failed"
            return state, encode({"error": error_to_json(error)})

    async def _run(self, job: Job) -> Result:
        asked = msgspec.json.decode(job.body)
        prompt = prompt_from_json(asked["prompt"])
        job.session_id = asked["session_id"]
        config = self._agents[job.base][1]
        config = config.but(name=config.name or job.agent, approval_timeout=0.0)  # nobody here could be asked
        if job.session_id is None:
            async with open_agent(config) as agent:
                return await chat(job, agent, prompt)
        async with (
            self._store.lease(job.session_id, seconds=self._visibility) as lease,
            open_agent(config, session_id=job.session_id, session_store=lease) as agent,
        ):
            return await chat(job, agent, prompt)

    async def _finish(self, job: Job, answer: tuple[str, bytes]) -> None:
        """Answer. It is tried for as long as it takes: whether the answer is still wanted is Redis's to say."""
        topic = f"agent:{job.session_id or job.agent}:responses"
        head = self.name.encode() + b" - " + encode({"topic": topic})[:-1] + b","
        said = b"late"
        while True:
            try:
                said = await self._link.run(
                    FINISH, job.base, job.id, job.fence, *answer, f"{self._prefix}:topic:{topic}", head
                )
                break
            except RedisUnavailable as error:
                logger.warning("the answer to request %s is not stored yet: %s", job.id, error)
                await trio.sleep(_PAUSE)
        if said == b"stored":
            self._answered += 1
        else:
            self._lost += 1
            logger.warning("the answer to request %s was refused: it is %s", job.id, said.decode())

    async def _give_back(self, job: Job, error: BaseException | None) -> None:
        self._forget(job)  # before: it may be ours again before we hear that it was not any more
        try:
            said = await self._link.run(RELEASE, job.base, job.id, job.fence, _CANCELLED, int(is_deadly(error)))
        except AlloyError as trouble:
            logger.warning("request %s is left to the next worker: %s", job.id, trouble)
        else:
            self._released += said != b"late"
            self._lost += said == b"late"

    # What becomes of those that run

    async def _renew(self) -> None:
        """Say that we are alive; what we cannot say in time ends by the deadline of its scope."""
        while True:
            await trio.sleep(self._visibility / 3)
            for base in self._agents:
                jobs = [job for job in self._jobs.values() if job.base == base]
                try:
                    await self._renew_some(base, jobs)
                except AlloyError as error:
                    self._note(f"hold the requests to {base}", error)
                else:
                    self._note(f"hold the requests to {base}")

    async def _renew_some(self, base: str, jobs: list[Job]) -> None:
        if not jobs:
            return
        until = trio.current_time() + self._visibility
        pairs = [each for job in jobs for each in (job.id, job.fence)]
        said = await self._link.run(RENEW, base, self.name, *pairs, patience=self._visibility / 3)
        for job, word in zip(jobs, said, strict=True):
            if word == b"lost":
                job.scope.cancel()
                continue
            job.scope.deadline = until
            if word == b"cancel":
                job.cancel()

    async def _listen(self) -> None:
        """Hear of cancels."""
        since = {f"{base}:ctl:{self.name}": "0-0" for base in self._agents}
        while True:
            try:
                for key, entry, request_id in await self._link.read(since, _BLOCK):
                    since[key] = entry
                    job = self._jobs.get((key.rpartition(":ctl:")[0], request_id))
                    if job is not None:
                        job.cancel()
            except RedisUnavailable as error:
                self._note("hear of cancels", error)
                await trio.sleep(_PAUSE)
            else:
                self._note("hear of cancels")

    def _note(self, doing: str, error: AlloyError | None = None) -> None:
        """Log that Redis does not let us do something, once, and that all is well again."""
        if error is not None:
            if not self._troubles:
                logger.warning("worker %s waits for Redis, and cannot %s: %s", self.name, doing, error)
            self._troubles.add(doing)
        elif doing in self._troubles:
            self._troubles.discard(doing)
            if not self._troubles:
                logger.warning("worker %s works with Redis again", self.name)
