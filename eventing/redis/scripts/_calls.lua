-- The tool calls that a job waits for.
-- USES _queue
local APPROVALS_DUE = 'torpor:approvals:due'

-- A job that waits for tool calls has the field `calling` (JSON), of its newest turn: `turn`, `epoch`, whether the job `ends` with it (1), how
-- many calls may run at once (`parallel`), how long a person is waited for (`ask_ms`), since when only people are (`paused_ms`, 0 for not), the
-- calls' `states` in the order of their places, and by place the `queues` that have a call's event.
local FINAL = {returned = true, denied = true, not_run = true, unknown = true, client = true}
local WAITING = {awaiting_approval = true, awaiting_input = true, in_doubt = true}
local MAY_HAVE_RUN = {sent = true, accepted = true, in_doubt = true, unknown = true}
local function call_key(job_id, calling, place) return string.format('%s:%d.%d:%d', job_id, calling.turn, place, calling.epoch) end
local function call_member(job_id, calling, place) return '/torpor/tools\0' .. call_key(job_id, calling, place) end
local function held_field(calling, place) return string.format('held:%d.%d', calling.turn, place) end
local function approval_member(job_id, calling, place) return string.format('%s %d.%d', job_id, calling.turn, place) end
local function approvals_of(job) return 'torpor:approvals:of:' .. (job.tenant_key or job.tenant) end
local function drop_approval(job, job_id, calling, place)
  local member = approval_member(job_id, calling, place)
  redis.call('ZREM', APPROVALS_DUE, member)
  redis.call('ZREM', approvals_of(job), member)
end

-- A job whose tools run is expected back at the replica that has its prompt: `calling.expected` has until when (`until_ms`), that replica
-- (`owner`), and the predictor's `queues`, each of which has the sorted set `expected` of such jobs by that time.
local function set_expected(calling, job_id, until_ms)
  local expected = calling.expected
  if not expected or expected.told_ms == until_ms then return end
  expected.told_ms = until_ms
  for _, prefix in ipairs(expected.queues) do
    if until_ms > 0 then
      redis.call('ZADD', prefix .. 'expected', until_ms, expected.owner .. ' ' .. job_id)
    else
      redis.call('ZREM', prefix .. 'expected', expected.owner .. ' ' .. job_id)
    end
  end
end

-- Take the calls of a job that ends out of queues and lists. Those that run learn of the end by their leases. What a redrive goes on from
-- stays.
local function end_calls(key, job, is_dead)
  local calling, job_id, fields = cjson.decode(job.calling), string.match(key, '{(.*)}'), {}
  for i, state in ipairs(calling.states) do
    local place = i - 1
    if WAITING[state] then drop_approval(job, job_id, calling, place) end
    if not FINAL[state] then
      for _, prefix in ipairs(calling.queues[tostring(place)] or {}) do void_entry(prefix, job.lane, call_member(job_id, calling, place)) end
    end
    fields[i] = held_field(calling, place)
  end
  redis.call('HDEL', key, unpack(fields))
  set_expected(calling, job_id, 0)
  if is_dead then
    calling.queues, calling.paused_ms, calling.expected = {}, 0, nil
    redis.call('HSET', key, 'calling', cjson.encode(calling))
  else
    redis.call('HDEL', key, 'calling')
  end
end
