-- End a running job: the last tokens, result and state in one step, by the newest attempt only. The first terminal state wins.
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 attempt, 2 state, 3 retention_s, 4 '1' for a dead letter, 5 outcome word for the history,
--       6..9 tokens as in `append` (6 '' for none), 10 milliseconds of GPU time to charge, 11.. field, value pairs (result, usage, error)
-- gives {'ok', now_ms} | {'fenced'} | {'terminal'} | {'gap'} | {'missing'}
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'history', 'token_count')
if not job[1] then return {'missing'} end
if job[1] ~= 'in_progress' and job[1] ~= 'queued' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return {'terminal'}
end
if job[2] ~= ARGV[1] or job[1] == 'queued' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return {'fenced'}
end
if ARGV[6] ~= '' and job[4] ~= ARGV[6] then return {'gap'} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local history = cjson.decode(job[3] or '[]')
if #history > 0 then
  history[#history].outcome = ARGV[5]
  history[#history].ended_ms = now
end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'finished_ms', now, 'lease_owner', '', 'lease_until_ms', 0, 'dead', ARGV[4],
  'history', cjson.encode(history), unpack(ARGV, 11))
if ARGV[10] ~= '0' then redis.call('HINCRBY', KEYS[1], 'gpu_ms', ARGV[10]) end
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[1], 'token_count', ARGV[6] + ARGV[7])
  if ARGV[6] == '0' then redis.call('HSETNX', KEYS[1], 'first_token_ms', now) end
  redis.call('XADD', KEYS[2], '*', 'kind', 'tokens', 'attempt', ARGV[1], 'index', ARGV[6], 'ids', ARGV[8], 'delta', ARGV[9])
end
redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', ARGV[2], 'attempt', ARGV[1], 'at_ms', now)
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('PUBLISH', 'torpor:ended', KEYS[1])
return {'ok', now}
