-- Give a job back before it ended, so that the next attempt starts at once and not when the lease runs out.
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 attempt, 2 lease id, 3 'handover' (costs no attempt) | 'failure' | 'lost' (each costs one), 4 max_attempts, 5 retention_s, 6 error JSON for the last failure
-- gives 'queued' | 'exhausted' (now failed, a dead letter) | 'fenced' | 'terminal' | 'missing'
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'failures', 'history', 'lease_id')
if not job[1] then return 'missing' end
if job[1] ~= 'in_progress' or job[2] ~= ARGV[1] or job[5] ~= ARGV[2] then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return (job[1] == 'in_progress' or job[1] == 'queued') and 'fenced' or 'terminal'
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local failures = tonumber(job[3])
if ARGV[3] ~= 'handover' then failures = failures + 1 end
local history = cjson.decode(job[4] or '[]')
if #history > 0 then
  history[#history].outcome = ARGV[3]
  history[#history].ended_ms = now
end
local exhausted = failures >= tonumber(ARGV[4])
local state = exhausted and 'failed' or 'queued'
redis.call('HSET', KEYS[1], 'state', state, 'failures', failures, 'lease_owner', '', 'lease_until_ms', 0, 'history', cjson.encode(history))
redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', state, 'attempt', ARGV[1], 'at_ms', now)
if not exhausted then return 'queued' end
redis.call('HSET', KEYS[1], 'finished_ms', now, 'dead', 1, 'announced', 0, 'error', ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('PUBLISH', 'torpor:ended', KEYS[1])
return 'exhausted'
