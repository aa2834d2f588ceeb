-- End a running job: the last tokens, result and state in one step, by the newest lease only. The first terminal state wins.
-- USES _lib
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 attempt, 2 lease id, 3 state, 4 retention_s, 5 '1' for a dead letter, 6 outcome word for the history,
--       7..10 tokens as in `append` (7 '' for none), 11 milliseconds of GPU time to charge, 12.. field, value pairs (result, usage, error)
-- gives 'ok' | 'fenced' | 'terminal' | 'gap' | 'missing'
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'token_count', 'lease_id')
if not job[1] then return 'missing' end
if job[1] ~= 'in_progress' and job[1] ~= 'queued' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return 'terminal'
end
if job[2] ~= ARGV[1] or job[4] ~= ARGV[2] or job[1] == 'queued' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return 'fenced'
end
if ARGV[7] ~= '' and job[3] ~= ARGV[7] then return 'gap' end
local now = now_ms()
if ARGV[11] ~= '0' then redis.call('HINCRBY', KEYS[1], 'gpu_ms', ARGV[11]) end
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[1], 'token_count', ARGV[7] + ARGV[8])
  if ARGV[7] == '0' then redis.call('HSETNX', KEYS[1], 'first_token_ms', now) end
  redis.call('XADD', KEYS[2], '*', 'kind', 'tokens', 'attempt', ARGV[1], 'index', ARGV[7], 'ids', ARGV[9], 'delta', ARGV[10])
end
end_job(KEYS[1], ARGV[3], now, ARGV[4], ARGV[5], ARGV[6], {unpack(ARGV, 12)})
return 'ok'
