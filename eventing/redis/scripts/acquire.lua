-- Take the lease of a job for a new attempt, or say why not. A job past its deadline or out of attempts is failed here.
-- USES _clock _job _queue _end
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 owner, 2 lease_ms, 3 max_attempts, 4 '1' if tokens so far may be continued, 5 retention_s of a failed job,
--       6 '1' if the owner runs nothing else, 7 sha of the request that the owner expects, '' for any,
--       8 a random id for the lease, 9 job id
-- gives {'acquired', attempt, token_count, tokens that are void now, what is held back, where the present turn begins, first step after it} | {'held', lease_left_ms} | {'missing'} | {'terminal'}
--       | {'expired'} | {'exhausted'} | {'other'} (recorded with another request: unchanged)
--       | {'unprepared'} (steps are left before it: unchanged)
--       | {'alone'} (its last attempt, and it has lost one before: unchanged, for an owner that runs nothing else; docs/adr/0018)
local job = read_job(KEYS[1])
local state = job.state
if not state then return {'missing'} end
if ARGV[7] ~= '' and (job.turns or (job.prepared_sha or job.sha) ~= ARGV[7]) then return {'other'} end -- no event has all turns
if state ~= 'queued' and state ~= 'in_progress' then return {'terminal'} end
if job.step and job.step ~= '' then return {'unprepared'} end
local now = now_ms()
local failures, tokens = tonumber(job.failures), tonumber(job.token_count)
local lease_until, deadline = tonumber(job.lease_until_ms or 0), tonumber(job.deadline_ms or 0)
local history = history_of(job.history)
if state == 'in_progress' then
  local left = lease_left(KEYS[1], lease_until, now, tonumber(ARGV[2]))
  if left > 0 then return {'held', left} end
  failures = failures + 1
  close_attempt(history, 'lost', now)
end
local reason
if deadline > 0 and now >= deadline then reason = 'expired' elseif failures >= tonumber(ARGV[3]) then reason = 'exhausted' end
if reason then
  local why = reason == 'expired' and LATE
    or error_json(reason, 'every attempt was lost (' .. failures .. ' of ' .. ARGV[3] .. ')')
  end_job(KEYS[1], job, 'failed', now, ARGV[5], '1', 'lost', {'failures', failures, 'error', why})
  return {reason}
end
if ARGV[6] ~= '1' and failures == ARGV[3] - 1 then
  for _, run in ipairs(history) do
    if run.outcome == 'lost' then return {'alone'} end
  end
end
local attempt = job.attempt + 1
local begin = tonumber(job.turn_begin or 0) -- the turns before are committed
local restarted = job.restart == '1' or (tokens > begin and ARGV[4] ~= '1')
local void = restarted and tokens - begin or 0
tokens = tokens - void
history[#history + 1] = {attempt = attempt, owner = ARGV[1], started_ms = now, resumed_from = tokens}
redis.call('HSET', KEYS[1], 'state', 'in_progress', 'attempt', attempt, 'failures', failures, 'token_count', tokens,
  'lease_owner', ARGV[1], 'lease_id', ARGV[8], 'lease_until_ms', now + tonumber(ARGV[2]), 'history', cjson.encode(history),
  'started_ms', job.started_ms or now)
if job.restart then redis.call('HDEL', KEYS[1], 'restart') end
if void > 0 then redis.call('HSET', KEYS[1], 'restarts', 1) end
note_began(job.fallback, now)
if job.follows then -- an older process queued it: it runs for itself
  redis.call('ZREM', 'torpor:{' .. job.follows .. '}:followers', ARGV[9])
  redis.call('HDEL', KEYS[1], 'follows', 'cache')
end
redis.call('ZADD', UNSTARTED, now + 2 * ARGV[2], ARGV[9])
redis.call('XADD', KEYS[2], '*', 'kind', 'attempt', 'attempt', attempt, 'index', tokens, 'restarted', restarted and 1 or 0, 'at_ms', now)
return {'acquired', attempt, tokens, void, job.hold or 'none', tonumber(job.turn_begin or 0), job.after or ''}
