-- Take the lease of a job for a new attempt, or say why not. A job past its deadline or out of attempts is failed here.
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 owner, 2 lease_ms, 3 max_attempts, 4 '1' if tokens so far may be continued, 5 retention_s of a failed job,
--       6 '1' if the owner runs nothing else, 7 sha of the request that the owner was told, '' for any,
--       8 a random id for the lease
-- gives {'acquired', attempt, token_count, tokens that are void now} | {'held', lease_left_ms} | {'missing'} | {'terminal', 1 for a dead letter that nobody announced} | {'expired'} | {'exhausted'}
--       | {'other'} (recorded with another request: unchanged)
--       | {'alone'} (its last attempt, and it has lost one before: unchanged, for an owner that runs nothing else; docs/adr/0085)
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'failures', 'token_count', 'lease_until_ms', 'deadline_ms', 'history', 'dead', 'announced', 'restart', 'sha')
local state = job[1]
if not state then return {'missing'} end
if ARGV[7] ~= '' and job[11] ~= ARGV[7] then return {'other'} end
if state ~= 'queued' and state ~= 'in_progress' then
  return {'terminal', job[8] == '1' and job[9] ~= '1' and 1 or 0}
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local attempt, failures, tokens = tonumber(job[2]), tonumber(job[3]), tonumber(job[4])
local lease_until, deadline = tonumber(job[5] or 0), tonumber(job[6] or 0)
local history = cjson.decode(job[7] or '[]')
if state == 'in_progress' then
  if lease_until > now then return {'held', lease_until - now} end
  failures = failures + 1
  if #history > 0 then
    history[#history].outcome = 'lost'
    history[#history].ended_ms = now
  end
end
local reason
if deadline > 0 and now >= deadline then reason = 'expired' elseif failures >= tonumber(ARGV[3]) then reason = 'exhausted' end
if reason then
  local message = reason == 'expired' and 'the deadline passed before the job ended'
    or 'every attempt was lost (' .. failures .. ' of ' .. ARGV[3] .. ')'
  redis.call('HSET', KEYS[1], 'state', 'failed', 'failures', failures, 'finished_ms', now, 'lease_owner', '', 'lease_until_ms', 0,
    'error', cjson.encode({code = reason, message = message, field = ''}), 'dead', 1, 'announced', 0, 'history', cjson.encode(history))
  redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', 'failed', 'attempt', attempt, 'at_ms', now)
  redis.call('EXPIRE', KEYS[1], ARGV[5])
  redis.call('EXPIRE', KEYS[2], ARGV[5])
  redis.call('PUBLISH', 'torpor:ended', KEYS[1])
  return {reason}
end
if ARGV[6] ~= '1' and failures == ARGV[3] - 1 then
  for _, run in ipairs(history) do
    if run.outcome == 'lost' then return {'alone'} end
  end
end
attempt = attempt + 1
local restarted = job[10] == '1' or (tokens > 0 and ARGV[4] ~= '1')
local void = restarted and tokens or 0
tokens = tokens - void
history[#history + 1] = {attempt = attempt, owner = ARGV[1], started_ms = now, resumed_from = tokens}
redis.call('HSET', KEYS[1], 'state', 'in_progress', 'attempt', attempt, 'failures', failures, 'token_count', tokens,
  'lease_owner', ARGV[1], 'lease_id', ARGV[8], 'lease_until_ms', now + tonumber(ARGV[2]), 'history', cjson.encode(history))
redis.call('HSETNX', KEYS[1], 'started_ms', now)
if job[10] then redis.call('HDEL', KEYS[1], 'restart') end
redis.call('XADD', KEYS[2], '*', 'kind', 'attempt', 'attempt', attempt, 'index', tokens, 'restarted', restarted and 1 or 0, 'at_ms', now)
return {'acquired', attempt, tokens, void}
