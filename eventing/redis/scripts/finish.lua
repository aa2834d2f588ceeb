-- End a running job: the last tokens, result and state in one step, by the newest lease only. The first terminal state wins.
-- USES _clock _job _end
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 attempt, 2 lease id, 3 state, 4 retention_s, 5 '1' for a dead letter, 6 outcome word for the history,
--       7..10 tokens as in `append` (7 '' for none), 11 milliseconds of GPU time to charge, 12 event record of the first step after it, '' for
--       not given, 13 recheck_ms, 14.. field, value pairs (result, usage, error, withheld)
-- gives 'ok' | 'validating' (kept for the steps after it) | 'step_queued' (the same, and the event of the first is in its queues)
--       | 'unjudged' (such steps are planned, and 12 is missing: unchanged)
--       | 'fenced' | 'terminal' | 'gap' | 'missing'
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
local fields = {'gpu_ms', (job.gpu_ms or 0) + ARGV[11], unpack(ARGV, 14)}
local unjudged = is_unjudged(job, ARGV[3], fields)
if unjudged and ARGV[12] == '' then return 'unjudged' end
if ARGV[7] ~= '' then
  redis.call('XADD', KEYS[2], '*', 'kind', 'tokens', 'attempt', ARGV[1], 'index', ARGV[7], 'ids', ARGV[9], 'delta', ARGV[10])
  for _, each in ipairs({'token_count', ARGV[7] + ARGV[8], 'first_token_ms', job.first_token_ms or now}) do fields[#fields + 1] = each end
end
if unjudged then
  return validate(KEYS[1], job, ARGV[3], now, ARGV[6], ARGV[12], ARGV[13], fields)
end
if job.hold and ARGV[7] ~= '' then job.token_count = ARGV[7] + ARGV[8] end
end_job(KEYS[1], job, ARGV[3], now, ARGV[4], ARGV[5], ARGV[6], fields)
return 'ok'
