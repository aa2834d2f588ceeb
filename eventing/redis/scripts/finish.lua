-- End a running job: the last tokens, result and state in one step, by the newest lease only. The first terminal state wins.
-- USES _lib
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 attempt, 2 lease id, 3 state, 4 retention_s, 5 '1' for a dead letter, 6 outcome word for the history,
--       7..10 tokens as in `append` (7 '' for none), 11 milliseconds of GPU time to charge, 12.. field, value pairs (result, usage, error)
-- gives 'ok' | 'fenced' | 'terminal' | 'gap' | 'missing'
local job = read_job(KEYS[1])
if not job.state then return 'missing' end
if job.state ~= 'in_progress' and job.state ~= 'queued' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return 'terminal'
end
if job.attempt ~= ARGV[1] or job.lease_id ~= ARGV[2] or job.state == 'queued' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return 'fenced'
end
if ARGV[7] ~= '' and job.token_count ~= ARGV[7] then return 'gap' end
local now = now_ms()
local fields = {'gpu_ms', (job.gpu_ms or 0) + ARGV[11], unpack(ARGV, 12)}
if ARGV[7] ~= '' then
  redis.call('XADD', KEYS[2], '*', 'kind', 'tokens', 'attempt', ARGV[1], 'index', ARGV[7], 'ids', ARGV[9], 'delta', ARGV[10])
  for _, each in ipairs({'token_count', ARGV[7] + ARGV[8], 'first_token_ms', job.first_token_ms or now}) do fields[#fields + 1] = each end
end
end_job(KEYS[1], job, ARGV[3], now, ARGV[4], ARGV[5], ARGV[6], fields)
return 'ok'
