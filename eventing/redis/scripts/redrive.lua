-- Give a dead letter a new life under the same id: it waits again, for its first attempt of a fresh budget. Its attempt number is raised,
-- so that whatever still comes of the old life is known by its number. The steps that were done stay done, and tool calls too, unless the
-- request was edited; then the calls' keys are of another epoch.
-- USES _clock _job _queue _conversation _tools
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 '1' if the request was edited (then tokens so far are void, and the next attempt says so), 2 attempt of the dead letter,
--       3 recheck_ms, 4 '1' to note that its event is unpublished, 5 event record, 6 number n of queues that want it,
--       7..6+n prefixes of their keys, 7+n.. field, value pairs (request, sha, model, and plan, plan_version, step)
-- gives 'queued' | 'not_dead' (or redriven meanwhile) | 'missing' | 'locked' (another job is adding to its conversation)
local job = redis.call('HMGET', KEYS[1], 'state', 'dead', 'attempt', 'token_count', 'tenant', 'lane', 'source', 'event_id', 'conversation',
  'step', 'pipeline', 'candidate_state', 'gpu_ms', 'usage', 'fallback', 'turns', 'calling', 'epoch', 'tenant_key')
if not job[1] then return 'missing' end
if job[1] ~= 'failed' or job[2] ~= '1' or job[3] ~= ARGV[2] then return 'not_dead' end
local now, job_id = now_ms(), string.match(KEYS[1], '{(.*)}')
if job[9] and begin_turn('torpor:{' .. job[9] .. '}', job_id, '') == 'locked' then return 'locked' end
local attempt, n = job[3] + 1, tonumber(ARGV[6])
local is_edited, calling = ARGV[1] == '1', job[17]
local state = (job[12] or calling) and not is_edited and 'in_progress' or 'queued' -- its answer waits for a step, or it for calls
redis.call('HSET', KEYS[1], 'state', state, 'attempt', attempt, 'dead', 0, 'failures', 0, 'finished_ms', 0, 'deadline_ms', 0, 'redriven_ms', now)
-- What this life used was counted at its end.
redis.call('HSET', KEYS[1], 'counted_gpu_ms', job[13] or 0)
if job[14] and ARGV[1] ~= '1' then redis.call('HSET', KEYS[1], 'counted_usage', job[14])
else redis.call('HDEL', KEYS[1], 'counted_usage') end
redis.call('HDEL', KEYS[1], 'error', 'result', (state == 'queued' or not job[12]) and 'usage' or 'error')
if job[11] then put_step(KEYS[1], job[11], nil, job[10]) end
if ARGV[1] == '1' then
  redis.call('HDEL', KEYS[1], 'rejected', 'plan', 'plan_version', 'step', 'pipeline', 'prepared', 'prepared_sha', 'after', 'after_queues',
    'hold', 'candidate', 'candidate_state', 'withheld', 'spent', 'routing', 'turns', 'turn_begin', 'calling', 'tool_list', 'late_results')
  if job[16] then
    local gone = {}
    for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
      if string.match(field, '^turn:') or string.match(field, '^call:') then gone[#gone + 1] = field end
    end
    redis.call('HDEL', KEYS[1], unpack(gone))
    redis.call('HSET', KEYS[1], 'epoch', (job[18] or 0) + 1)
  end
  redis.call('HSET', KEYS[1], 'token_count', 0, 'restart', job[4] ~= '0' and 1 or 0, unpack(ARGV, 7 + n))
end
if calling and not is_edited then ask_again(KEYS[1], {tenant = job[5], tenant_key = job[19]}, job_id, cjson.decode(calling), now) end
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', KEYS[2])
redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', state, 'attempt', attempt, 'at_ms', now)
redis.call('ZADD', UNSTARTED, now + ARGV[3], job_id)
if ARGV[4] == '1' then redis.call('ZADD', UNPUBLISHED, now + SWEEP_AFTER_MS, job_id) end
if ARGV[1] == '1' then
  watch_start(job_id, value_in(ARGV, 'fallback', 7 + n), now)
elseif state == 'queued' and (job[10] or '') == '' then
  watch_start(job_id, job[15], now)
end
local queues = {unpack(ARGV, 7, 6 + n)}
if n > 0 then redis.call('HSET', KEYS[1], 'queues', cjson.encode(queues)) end
local member = event_identity(job[7], job[8], job[5])
for _, prefix in ipairs(queues) do enqueue(prefix, job[6], member, ARGV[5], job[5], false, now) end
return 'queued'
