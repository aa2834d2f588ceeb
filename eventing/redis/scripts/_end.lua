-- How a job ends.
-- USES _clock _job _queue _conversation _cache _spent _calls
local ENDED, ENDED_KEPT = 'torpor:ended', 100000
local FEED_KEPT = 10000 -- of a tenant's own ends
local UNARCHIVED, LARGE = 'torpor:unarchived', 65536 -- bytes of result and tokens (16 each) that do not stay in Redis
local LEAVING = 'torpor:leaving'

-- Take the tokens from place `begin` on out of a stream; the turns before stay.
local function drop_turn(stream, begin)
  if begin == 0 then return redis.call('XTRIM', stream, 'MAXLEN', 0) end
  for _, entry in ipairs(redis.call('XREVRANGE', stream, '+', '-')) do
    local kind, index = entry[2][2], value_in(entry[2], 'index')
    if kind == 'turn' then return end
    if kind == 'tokens' and tonumber(index) >= begin then redis.call('XDEL', stream, entry[1]) end
  end
end

-- A job's deadline, 0 for none: it stands still while only people are awaited.
local function deadline_of(job)
  if job.calling and cjson.decode(job.calling).paused_ms > 0 then return 0 end
  return tonumber(job.deadline_ms or 0)
end

-- The one way into a terminal state: record, stream, lists, queues, and the entry for the ended stream (docs/adr/0140).
-- `job` is the record as `read_job` gave it in this script; `outcome` closes a running attempt; `fields` are field, value pairs
-- (result, usage, error).
local function end_job(key, job, state, now, retention_s, dead, outcome, fields)
  local job_id, list = string.match(key, '{(.*)}'), job.tenant_key or job.tenant
  local history = history_of(job.history)
  if job.state == 'in_progress' then close_attempt(history, outcome, now) end
  if job.spent and not job.candidate_state then with_spent(job, fields) end
  local usage, gpu_ms = used_by(job, fields)
  -- First: Redis 7.0 can apply the first half of a script after a power cut. An announced end that is not in the record is detected.
  redis.call('XADD', ENDED, 'MAXLEN', '~', ENDED_KEPT, '*', 'job', job_id, 'tenant', job.tenant, 'model', job.model or '',
    'lane', job.lane, 'attempt', job.attempt, 'state', state, 'dead', dead, 'at_ms', now, 'usage', usage, 'gpu_ms', gpu_ms,
    'key', job.key_id or '', 'url', job.url or '')
  redis.call('XADD', 'torpor:results:' .. list, 'MAXLEN', '~', FEED_KEPT, '*', 'job', job_id, 'attempt', job.attempt)
  local size, result = 16 * (tonumber(job.token_count) or 0), value_in(fields, 'result')
  if job.conversation then end_turn(key, job_id, job.conversation, state, result, job.turns) end
  -- Before the state: what is shown of an ended job is all that its stream has.
  local is_withheld = value_in(fields, 'incomplete') ~= nil
  local is_over = state == 'cancelled' or (state == 'failed' and dead ~= '1')
  if is_withheld or (job.hold == 'whole' and is_over) then redis.call('XTRIM', key .. ':tokens', 'MAXLEN', 0) end
  redis.call('HSET', key, 'state', state, 'attempt', job.attempt, 'finished_ms', now, 'lease_owner', '', 'lease_until_ms', 0,
    'dead', dead, 'history', history_json(history), unpack(fields))
  if state ~= 'failed' and job.prepared_sha then redis.call('HDEL', key, 'prepared', 'prepared_sha') end
  if job.after and job.after ~= '' then redis.call('HDEL', key, 'sealed') end
  if not job.has_stream then
    local entry = {'kind', 'state', 'state', state, 'attempt', job.attempt, 'at_ms', now}
    if job.hold and not is_withheld and (state == 'completed' or state == 'incomplete') then
      entry[9], entry[10] = 'shown', job.token_count
    end
    redis.call('XADD', key .. ':tokens', '*', unpack(entry))
  end
  -- A dead letter is redriven where it stopped.
  if job.candidate_state and (state ~= 'failed' or dead ~= '1') then redis.call('HDEL', key, 'candidate', 'candidate_state', 'withheld', 'spent') end
  redis.call('EXPIRE', key, retention_s)
  redis.call('EXPIRE', key .. ':tokens', retention_s)
  redis.call('ZADD', LEAVING, now + 1000 * retention_s, list .. ' ' .. job_id)
  -- Not of a failed job: a redrive goes on from its tokens.
  if size + #(result or '') > LARGE and state ~= 'failed' then redis.call('ZADD', UNARCHIVED, now, job_id) end
  if dead == '1' then redis.call('ZADD', 'torpor:dead:' .. list, now, job_id) end
  if job.deadline_ms and job.deadline_ms ~= '0' then redis.call('ZREM', DEADLINES, job_id) end
  redis.call('ZREM', UNSTARTED, job_id)
  unwatch_start(job_id, job.fallback)
  if job.follows then redis.call('ZREM', 'torpor:{' .. job.follows .. '}:followers', job_id) end
  if job.cache then keep_answer(job_id, list, job, job.turns and 'failed' or state, now) end -- what tools said is not kept
  if not job.queues then redis.call('ZREM', UNPUBLISHED, job_id) end
  if job.calling then end_calls(key, job, state == 'failed' and dead == '1') end
  if (job.state == 'queued' or (job.step and job.step ~= '')) and job.queues then
    local member = event_identity(job.source, job.event_id, job.tenant)
    for _, prefix in ipairs(cjson.decode(job.queues)) do void_entry(prefix, job.lane, member) end
  end
end

-- Keep an answer for the steps that judge it, and put the event of the first of them into its queues, or note that it is to be published.
-- `state` is that in which the job ends when they let it pass; `event` is the event's record. No lease is needed from here on. Gives
-- 'step_queued' where the event is in queues, 'validating' where it is noted.
local function validate(key, job, state, now, outcome, event, recheck_ms, fields)
  local job_id, history, kept = string.match(key, '{(.*)}'), history_of(job.history), {}
  local queues = job.after_queues and cjson.decode(job.after_queues) or {}
  if job.state == 'in_progress' then close_attempt(history, outcome, now) end
  for i = 1, #fields, 2 do
    kept[i], kept[i + 1] = fields[i] == 'result' and 'candidate' or fields[i], fields[i + 1]
    if fields[i] == 'usage' then kept[i + 1] = usage_with(fields[i + 1], job.spent) end
  end
  -- First: Redis 7.0 can apply the first half of a script after a power cut. An event that comes before its step is in the record does nothing.
  redis.call('ZADD', UNSTARTED, now + recheck_ms, job_id)
  unwatch_start(job_id, job.fallback)
  if #queues == 0 then redis.call('ZADD', UNPUBLISHED, now + SWEEP_AFTER_MS, job_id) end
  local member = event_identity(job.source, job.event_id, job.tenant)
  for _, prefix in ipairs(queues) do enqueue(prefix, job.lane, member, event, job.tenant, false, now) end
  if #queues > 0 then redis.call('HSET', key, 'queues', job.after_queues) end
  redis.call('HSET', key, 'state', 'in_progress', 'attempt', job.attempt, 'step', job.after, 'candidate_state', state, 'lease_owner', '',
    'lease_id', '', 'lease_until_ms', 0, 'history', history_json(history), unpack(kept))
  redis.call('XADD', key .. ':tokens', '*', 'kind', 'state', 'state', 'in_progress', 'phase', 'validating', 'attempt', job.attempt,
    'at_ms', now)
  return #queues > 0 and 'step_queued' or 'validating'
end

-- True where an ending is an answer that steps after the predictor judge first.
local function is_unjudged(job, state, fields)
  if not job.after or job.after == '' or (state ~= 'completed' and state ~= 'incomplete') then return false end
  return value_in(fields, 'incomplete') == nil -- not withheld already
end

-- End a job with the answer that its steps have let pass, or, with a `reason`, without its text.
local function end_judged(key, job, now, retention_s, reason, fields)
  local held = redis.call('HMGET', key, 'candidate', 'withheld')
  local state, has_result = job.candidate_state, value_in(fields, 'result') ~= nil
  if reason ~= '' then
    state = 'incomplete'
    fields[#fields + 1], fields[#fields + 2] = 'incomplete', reason
  end
  local result = held[1]
  if reason ~= '' then result = held[2] end
  if result and not has_result then fields[#fields + 1], fields[#fields + 2] = 'result', result end
  end_job(key, job, state, now, retention_s, '0', '', fields)
end

-- The error of a job, as JSON.
local function error_json(code, message) return cjson.encode({code = code, message = message, field = ''}) end
local LATE_WORDS = 'the deadline passed before the job ended'
local LATE = error_json('expired', LATE_WORDS)

-- End a job whose deadline has passed and that has no lease: failed; or, when steps have yet to judge its answer, with it, unless it is held
-- back. Then it ends without its text.
local function end_late(key, job, now, retention_s, dead_retention_s, outcome)
  if job.step == TOOLS and (job.calling or job.candidate_state) then -- what the model said last is no answer
    local n = 0
    for _, state in ipairs(job.calling and cjson.decode(job.calling).states or {}) do if MAY_HAVE_RUN[state] then n = n + 1 end end
    local words = n > 0 and string.format('%s; %d tool %s may have happened', LATE_WORDS, n, n == 1 and 'call' or 'calls') or LATE_WORDS
    return end_job(key, job, 'failed', now, dead_retention_s, '1', outcome, {'error', error_json('expired', words)})
  end
  if job.candidate_state then
    return end_judged(key, job, now, retention_s, job.hold and 'content_filter_unavailable' or '', {})
  end
  end_job(key, job, 'failed', now, dead_retention_s, '1', outcome, {'error', LATE})
end

-- End a job with the answer of another that ended, of the same request. `use` is the start of what it says of the cache, as JSON, to
-- which the usage that was saved is added. A stream of tokens that were started over, which no reader of this job saw, is left out.
local function end_with(key, job, from, state, now, retention_s, use, is_seen)
  local got = redis.call('HMGET', from, 'result', 'object', 'usage', 'token_count', 'restarts', 'pipeline', 'incomplete', 'routing')
  local fields = {'cache', use .. ',"saved_usage":' .. (got[3] or 'null') .. '}'}
  local function add(name, value) fields[#fields + 1], fields[#fields + 2] = name, value end
  if got[1] then add('result', got[1]) end
  if got[3] then add('usage', NO_USAGE) end
  if got[6] and got[6] ~= '' then add('pipeline', got[6]) end -- what its answer cites was found by these steps
  if got[2] then
    add('object', got[2])
    redis.call('ZADD', UNARCHIVED, now, string.match(key, '{(.*)}')) -- it gets an object of its own
  end
  if is_seen or not got[5] then
    job.has_stream = redis.call('COPY', from .. ':tokens', key .. ':tokens', 'REPLACE') == 1
    if job.has_stream then
      job.token_count = got[4]
      add('token_count', got[4])
    end
  end
  job.cache = nil
  if got[7] then add('incomplete', got[7]) end
  if got[8] then add('routing', got[8]) end
  end_job(key, job, state, now, retention_s, '0', '', fields)
end
