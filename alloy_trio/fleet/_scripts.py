"""
What has to happen at once in Redis, as scripts, and what each key holds.

All keys of an agent have one hash tag, `PREFIX:{AGENT}`, below `base`: in a cluster they are on one node, and scripts may touch
them together.

    base:queue          stream: the requests that may be begun, an entry {id} each. A group `workers` reads it. An entry leaves
                        it when its request is over, so its length is what is queued and running
    base:open           sorted set: ids of all requests that are not over, by the time of their submission
    base:r:ID           hash, one request
        state           waiting (in line) | queued | running | done | failed | cancelled | dead
        body, digest    what was asked; what tells that an id is used again for something else
        who             who is to be told: a submitter in each line
        order, keep     the line that it stands in, or ""; seconds that the answer is kept
        entry           its entry in the queue
        fence           rises with each beginning: the right to answer. What comes with an older one is too late
        owner, nonce    the worker that has it, and which of its takings that was (a reply that was lost is asked for again)
        tries           beginnings that came to no end
        cancel          "1" once somebody wants it cancelled
        answer          JSON: {"result": …} or {"error": …}
    base:line:ORDER     list: ids that are run one after the other, the first of them in the queue or running
    base:to:SUBMITTER   stream: ids that are over, for one submitter; bounded, and gone `keep` seconds after the last one
    base:ctl:WORKER     stream: ids that a worker is to cancel; bounded, and gone soon
    base:dead           stream, bounded: requests that were given up, {id, body, tries}
    base:count          hash: submitted, done, failed, cancelled, dead, repeated

Invariants: a request has one answer, which never changes (`settle` is called in states that are not over, and makes them over).
It is answered, taken out of the queue and told in one step. Who answers has the current fence. One of a line is in the queue.

In a full Redis (`maxmemory`) the first command that needs room refuses the script, before it has changed anything: so nothing new is
submitted. What is there goes on, or it would stay full for ever: see `let_through`.
"""

from __future__ import annotations

import hashlib
from typing import Final

import attrs

_KIT: Final = """
local base = KEYS[1]
local group = 'workers'
local queue, open, count = base .. ':queue', base .. ':open', base .. ':count'
local function of(id) return base .. ':r:' .. id end
local function get(id, field) return redis.call('HGET', of(id), field) end
local function is_over(state) return state == 'done' or state == 'failed' or state == 'cancelled' or state == 'dead' end
-- A write that needs no room, and changes nothing; behind it Redis refuses nothing, or the script would be half done.
local function let_through() redis.call('ZREM', open, '') end
local function add_who(id, who)
    let_through()
    local known = get(id, 'who') or ''
    if not string.find('\\n' .. known .. '\\n', '\\n' .. who .. '\\n', 1, true) then
        redis.call('HSET', of(id), 'who', known .. '\\n' .. who)
    end
end
local function leave(id, entry)
    if entry then
        redis.call('XACK', queue, group, entry)
        redis.call('XDEL', queue, entry)
    end
end
local function push(id)
    redis.call('HSET', of(id), 'state', 'queued')
    redis.call('HSET', of(id), 'entry', redis.call('XADD', queue, '*', 'id', id))
end
local function advance(line)
    local after = redis.call('LINDEX', line, 0)
    while after do
        local state = get(after, 'state')
        if state == 'waiting' then return push(after) end
        if state and not is_over(state) then return end
        redis.call('LPOP', line)
        redis.call('ZREM', open, after)
        after = redis.call('LINDEX', line, 0)
    end
end
local function step_up(id, order)
    if not order or order == '' then return end
    redis.call('LREM', base .. ':line:' .. order, 1, id)
    advance(base .. ':line:' .. order)
end
local function settle(id, state, answer)
    redis.call('HSET', of(id), 'state', state, 'answer', answer)
    local got = redis.call('HMGET', of(id), 'entry', 'order', 'who', 'keep', 'tries')
    leave(id, got[1])
    redis.call('ZREM', open, id)
    local keep = tonumber(got[4]) or 3600
    for who in string.gmatch(got[3] or '', '[^\\n]+') do
        local to = base .. ':to:' .. who
        redis.call('XADD', to, 'MAXLEN', '~', 10000, '*', 'id', id)
        redis.call('EXPIRE', to, math.max(keep, 60))
    end
    redis.call('HDEL', of(id), 'body', 'entry', 'nonce')
    redis.call('EXPIRE', of(id), keep)
    redis.call('HINCRBY', count, state, 1)
    step_up(id, got[2])
end
"""


@attrs.frozen
class Script:
    """A script, and the digest by which Redis knows it."""

    text: str
    sha: str


def _script(text: str, kit: str = _KIT) -> Script:
    whole = kit + text
    return Script(whole, hashlib.sha1(whole.encode()).hexdigest())  # noqa: S324 - Redis's name for it


# id, body, digest, submitter, order, keep, max_pending → the state; "full", or "other" for an id that is used already
SUBMIT: Final = _script("""
local id, body, digest, who, order, keep, most = unpack(ARGV)
local known = redis.call('HMGET', of(id), 'state', 'digest')
if known[1] then
    if known[2] ~= digest then return 'other' end
    add_who(id, who)
    return known[1]
end
if redis.call('ZCARD', open) >= tonumber(most) then return 'full' end
redis.call('HSET', of(id), 'state', 'waiting', 'body', body, 'digest', digest, 'who', who, 'order', order, 'keep', keep,
    'fence', 0, 'tries', 0)
redis.call('ZADD', open, redis.call('TIME')[1], id)
redis.call('HINCRBY', count, 'submitted', 1)
if order == '' then
    push(id)
else
    redis.call('RPUSH', base .. ':line:' .. order, id)
    advance(base .. ':line:' .. order)
end
return get(id, 'state')
""")

# worker, nonce, max_tries, answer to a poisoned one, answer to a cancelled one, then entry and id of each → {id, fence, body}
BEGIN: Final = _script("""
local worker, nonce, most, poisoned, cancelled = unpack(ARGV)
local begun = {}
let_through()
for at = 6, #ARGV, 2 do
    local entry, id = ARGV[at], ARGV[at + 1]
    local got = redis.call('HMGET', of(id), 'state', 'entry', 'fence', 'owner', 'nonce', 'tries', 'cancel', 'body')
    local state, tries, body = got[1], tonumber(got[6]) or 0, got[8] or ''
    local is_mine = #redis.call('XPENDING', queue, group, entry, entry, 1, worker) == 1
    if not state or is_over(state) or got[2] ~= entry then
        leave(id, entry)
        if not state then redis.call('ZREM', open, id) end
    elseif is_mine then
        if state == 'running' and got[4] == worker and got[5] == nonce then
            table.insert(begun, {id, tonumber(got[3]), body})
        elseif got[7] == '1' then
            settle(id, 'cancelled', cancelled)
        elseif tries >= tonumber(most) then
            redis.call('XADD', base .. ':dead', 'MAXLEN', '~', 1000, '*', 'id', id, 'body', body, 'tries', tries)
            settle(id, 'dead', poisoned)
        else
            local fence = redis.call('HINCRBY', of(id), 'fence', 1)
            redis.call('HSET', of(id), 'state', 'running', 'owner', worker, 'nonce', nonce, 'tries', tries + 1)
            redis.call('XCLAIM', queue, group, worker, 0, entry, 'JUSTID')
            if tries > 0 then redis.call('HINCRBY', count, 'repeated', 1) end
            table.insert(begun, {id, fence, body})
        end
    end
end
return begun
""")

# id, fence, state, answer, channel, what a message on it has before the answer → "stored", "late" (somebody else has it, or it is over) or "gone"
FINISH: Final = _script("""
local id, fence, state, answer, channel, head = unpack(ARGV)
let_through()
local got = redis.call('HMGET', of(id), 'state', 'fence')
if not got[1] then return 'gone' end
if got[2] ~= fence then return 'late' end
if got[1] == state then return 'stored' end
if got[1] ~= 'running' then return 'late' end
settle(id, state, answer)
redis.call('PUBLISH', channel, head .. string.sub(answer, 2))
return 'stored'
""")

# id, fence, answer to a cancelled one, "1" if the worker dies of it → "queued" for another one, "cancelled" or "late"
RELEASE: Final = _script("""
local id, fence, cancelled, is_deadly = unpack(ARGV)
let_through()
local got = redis.call('HMGET', of(id), 'state', 'fence', 'entry', 'tries', 'cancel')
if got[1] ~= 'running' or got[2] ~= fence then return 'late' end
if got[5] == '1' then
    settle(id, 'cancelled', cancelled)
    return 'cancelled'
end
if is_deadly ~= '1' then redis.call('HSET', of(id), 'tries', math.max(0, got[4] - 1)) end
leave(id, got[3])
push(id)
return 'queued'
""")

# worker, answer to a cancelled one, then ids: it takes nothing more, and runs these only; what else it was handed, or has begun
# and does not know, is for others. Without ids it ends.
LEAVE: Final = _script("""
local worker, cancelled, keeps = ARGV[1], ARGV[2], {}
for at = 3, #ARGV do keeps[ARGV[at]] = true end
for _, each in ipairs(redis.call('XPENDING', queue, group, '-', '+', 10000, worker)) do
    local entry = each[1]
    local found = redis.call('XRANGE', queue, entry, entry)[1]
    local id = found and found[2][2]
    if not id or not keeps[id] then
        leave(id, entry)
        if id and get(id, 'entry') == entry then
            local got = redis.call('HMGET', of(id), 'state', 'owner', 'cancel')
            if got[1] == 'running' and got[2] == worker then redis.call('HINCRBY', of(id), 'tries', -1) end
            if got[3] == '1' then settle(id, 'cancelled', cancelled) else push(id) end
        end
    end
end
if #ARGV == 2 then redis.call('XGROUP', 'DELCONSUMER', queue, group, worker) end
return 0
""")

# worker, then id and fence of each → for each "ok", "cancel" or "lost"
RENEW: Final = _script("""
local worker, said = ARGV[1], {}
for at = 2, #ARGV, 2 do
    local got = redis.call('HMGET', of(ARGV[at]), 'state', 'fence', 'entry', 'cancel')
    if got[1] ~= 'running' or got[2] ~= ARGV[at + 1] then
        table.insert(said, 'lost')
    else
        redis.call('XCLAIM', queue, group, worker, 0, got[3], 'JUSTID')
        table.insert(said, got[4] == '1' and 'cancel' or 'ok')
    end
end
return said
""")

# worker, milliseconds, how many → entry and id of each that nobody has cared for; forgets consumers that are long gone
CLAIM: Final = _script("""
local worker, idle, most = unpack(ARGV)
local found, at = {}, '0-0'
for _ = 1, 100 do
    local got = redis.call('XAUTOCLAIM', queue, group, worker, idle, at, 'COUNT', most - #found / 2)
    for _, entry in ipairs(got[2]) do
        if entry and entry[2] then
            table.insert(found, entry[1])
            table.insert(found, entry[2][2])
        end
    end
    at = got[1]
    if at == '0-0' or #found / 2 >= tonumber(most) then break end
end
for _, each in ipairs(redis.call('XINFO', 'CONSUMERS', queue, group)) do
    local name, pending, since = each[2], each[4], each[6]
    if name ~= worker and pending == 0 and since > 20 * idle then
        redis.call('XGROUP', 'DELCONSUMER', queue, group, name)
    end
end
return found
""")

# id, answer → "cancelled", "running" (its worker is told), "over" or "unknown"
CANCEL: Final = _script("""
local id, answer = unpack(ARGV)
let_through()
local got = redis.call('HMGET', of(id), 'state', 'owner')
local state = got[1]
if not state then return 'unknown' end
if is_over(state) then return 'over' end
if state ~= 'running' then
    settle(id, 'cancelled', answer)
    return 'cancelled'
end
redis.call('HSET', of(id), 'cancel', '1')
local to = base .. ':ctl:' .. got[2]
redis.call('XADD', to, 'MAXLEN', '~', 1000, '*', 'id', id)
redis.call('EXPIRE', to, 600)
return 'running'
""")

# id, submitter: who is to be told besides → whether there is such a request
TELL: Final = _script("""
local id, who = unpack(ARGV)
if not get(id, 'state') then return 0 end
add_who(id, who)
return 1
""")

# ids → state, answer and digest of each; "" for a request that is not known, or is not over. What comes behind some megabytes of
# answers is "later": ask again for it. Who looks for one that waits lets its line go on, if the first of it was thrown away.
FETCH: Final = _script("""
local said, size = {}, 0
for _, id in ipairs(ARGV) do
    local state = get(id, 'state') or ''
    local answer = ''
    if is_over(state) then
        if size > 4000000 then state = 'later' else answer = get(id, 'answer') or '' end
        size = size + #answer
    end
    if state == 'waiting' then advance(base .. ':line:' .. (get(id, 'order') or '')) end
    table.insert(said, state)
    table.insert(said, answer)
    table.insert(said, get(id, 'digest') or '')
end
return said
""")

# how many → time, id, body and tries of each of the last ones that were given up, the newest first
DEAD: Final = _script("""
local said = {}
for _, each in ipairs(redis.call('XREVRANGE', base .. ':dead', '+', '-', 'COUNT', ARGV[1])) do
    for _, what in ipairs({string.match(each[1], '%d+'), each[2][2], each[2][4] or '', each[2][6] or ''}) do table.insert(said, what) end
end
return said
""")

# → what QueueStatistics has
STATISTICS: Final = _script("""
local running = 0
if redis.call('EXISTS', queue) == 1 then
    for _, each in ipairs(redis.call('XINFO', 'GROUPS', queue)) do running = running + each[6] end
end
local counts = redis.call('HMGET', count, 'submitted', 'done', 'failed', 'cancelled', 'dead', 'repeated')
local said = {redis.call('ZCARD', open), running}
for at = 1, 6 do table.insert(said, tonumber(counts[at] or 0)) end
return said
""")

# makes the group, if it is not there
GROUP: Final = _script("""
if redis.call('EXISTS', queue) == 1 then
    for _, each in ipairs(redis.call('XINFO', 'GROUPS', queue)) do
        if each[2] == group then return 'ok' end
    end
end
redis.call('XGROUP', 'CREATE', queue, group, '0', 'MKSTREAM')
return 'ok'
""")

# The store of sessions: KEYS[1] is what its keys begin with, ARGV[1] the session.

_STORE: Final = """
local log, head, lease = KEYS[1] .. 'log:' .. ARGV[1], KEYS[1] .. 'head:' .. ARGV[1], KEYS[1] .. 'lease:' .. ARGV[1]
"""

# id → number and value of each record
LOAD: Final = _script("return redis.call('HGETALL', log)", _STORE)

# id, numbers → last number, version, and the value of each number
PEEK: Final = _script(
    """
local said = {redis.call('HGET', head, 'last') or '0', redis.call('HGET', head, 'version') or ''}
for at = 2, #ARGV do table.insert(said, redis.call('HGET', log, ARGV[at]) or '') end
return said
""",
    _STORE,
)

# id, token or "", version as it was, version as it will be, "append" or "rewrite", seconds that it is kept or 0, then number
# and value of each record
# → "ok", "changed", "leased" (by somebody else) or "lost"
WRITE: Final = _script(
    """
local _, token, before, after, verb, keep = unpack(ARGV, 1, 6)
local holder = redis.call('GET', lease)
if token ~= '' and holder ~= token then return 'lost' end
if token == '' and holder then return 'leased' end
local version = redis.call('HGET', head, 'version') or ''
if version == after then return 'ok' end
if version ~= before then return 'changed' end
if #ARGV == 6 then
    redis.call('DEL', log, head)
    return 'ok'
end
redis.call('HSET', head, 'version', after, 'last', ARGV[#ARGV - 1])
if verb == 'rewrite' then redis.call('DEL', log) end
for at = 7, #ARGV, 2 do redis.call('HSET', log, ARGV[at], ARGV[at + 1]) end
for _, key in ipairs({log, head}) do
    if keep == '0' then redis.call('PERSIST', key) else redis.call('EXPIRE', key, keep) end
end
return 'ok'
""",
    _STORE,
)

# id, token, milliseconds → 0, or for how many milliseconds somebody else has it
LEASE: Final = _script(
    """
local holder = redis.call('GET', lease)
if holder and holder ~= ARGV[2] then return math.max(1, redis.call('PTTL', lease)) end
redis.call('SET', lease, ARGV[2], 'PX', ARGV[3])
return 0
""",
    _STORE,
)

# id, token
UNLEASE: Final = _script("if redis.call('GET', lease) == ARGV[2] then redis.call('DEL', lease) end return 0", _STORE)

# KEYS[1]: what the keys of topics begin with; topic, publisher, message, how many are kept, for how many seconds → 0
# A topic has a channel, and a stream if any are kept. What is said is the publisher, the entry in the stream and the message.
PUBLISH: Final = _script(
    """
local topic, from, message, keep, seconds = unpack(ARGV)
local entry = '-'
if keep ~= '0' then
    local kept = KEYS[1] .. 'kept:' .. topic
    entry = redis.call('XADD', kept, 'MAXLEN', keep, '*', 'from', from, 'message', message)
    redis.call('EXPIRE', kept, seconds)
end
redis.call('PUBLISH', KEYS[1] .. 'topic:' .. topic, from .. ' ' .. entry .. ' ' .. message)
return 0
""",
    "",
)

# KEYS[1] as above; topic, how many → entry and message of each that is kept, the oldest first
KEPT: Final = _script(
    """
local said = {}
local found = redis.call('XREVRANGE', KEYS[1] .. 'kept:' .. ARGV[1], '+', '-', 'COUNT', ARGV[2])
for at = #found, 1, -1 do
    table.insert(said, found[at][1])
    table.insert(said, found[at][2][4] or '')
end
return said
""",
    "",
)
