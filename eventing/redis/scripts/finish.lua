-- End a running job: the last tokens, result and state in one step, by the newest lease only. The first terminal state wins.
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 attempt, 2 lease id, 3 state, 4 retention_s, 5 '1' for a dead letter, 6 outcome word for the history,
--       7..10 tokens as in `append` (7 '' for none), 11 milliseconds of GPU time to charge, 12.. field, value pairs (result, usage, error)
-- gives {'ok', now_ms} | {'fenced'} | {'terminal'} | {'gap'} | {'missing'}
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'history', 'token_count', 'lease_id')
if not job[1] then return {'missing'} end
if job[1] ~= 'in_progress' and job[1] ~= 'queued' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return {'terminal'}
end
if job[2] ~= ARGV[1] or job[5] ~= ARGV[2] or job[1] == 'queued' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return {'fenced'}
end
if ARGV[7] ~= '' and job[4] ~= ARGV[7] then return {'gap'} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local history = cjson.decode(job[3] or '[]')
if #history > 0 then
  history[#history].outcome = ARGV[6]
  history[#history].ended_ms = now
end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'finished_ms', now, 'lease_owner', '', 'lease_until_ms', 0, 'dead', ARGV[5],
  'history', cjson.encode(history), unpack(ARGV, 12))
if ARGV[11] ~= '0' then redis.call('HINCRBY', KEYS[1], 'gpu_ms', ARGV[11]) end
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[1], 'token_count', ARGV[7] + ARGV[8])
  if ARGV[7] == '0' then redis.call('HSETNX', KEYS[1], 'first_token_ms', now) end
  redis.call('XADD', KEYS[2], '*', 'kind', 'tokens', 'attempt', ARGV[1], 'index', ARGV[7], 'ids', ARGV[9], 'delta', ARGV[10])
end
redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', ARGV[3], 'attempt', ARGV[1], 'at_ms', now)
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('PUBLISH', 'torpor:ended', KEYS[1])
return {'ok', now}
