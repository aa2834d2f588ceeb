-- End a job without a lease: cancelled by its owner, undeliverable, or answered by a predictor without a store.
-- USES _clock _job _end
-- KEYS  1 job hash
-- ARGV  1 state, 2 retention_s, 3 '1' for a dead letter, 4 '1' to end it even under a live lease (cancel),
--       5 attempt that the ending is of, '' when it is of none, 6 lease_ms, 7 event record of the first step after the predictor, '' for not
--       given, 8 recheck_ms, 9.. field, value pairs
-- gives 'ok' | 'validating' | 'step_queued' | 'unjudged' (as `finish`) | 'terminal' | 'held' (it has a live lease)
--       | 'fenced' (the ending of an earlier life, or attempt, or the job has an answer, which steps judge, or waits for
--       tool calls) | 'missing'
local job = read_job(KEYS[1])
if not job.state then return 'missing' end
if job.state ~= 'in_progress' and job.state ~= 'queued' then return 'terminal' end
local now = now_ms()
if job.state == 'in_progress' and ARGV[4] ~= '1' and lease_left(KEYS[1], job.lease_until_ms, now, ARGV[6]) > 0 then return 'held' end
local fields, attempt = {unpack(ARGV, 9)}, tonumber(ARGV[5])
local unjudged = is_unjudged(job, ARGV[1], fields)
if (job.candidate_state or job.calling) and ARGV[4] ~= '1' then return 'fenced' end
if unjudged and ARGV[7] == '' then return 'unjudged' end
if attempt then
  if attempt < tonumber(job.attempt) then
    redis.call('HINCRBY', KEYS[1], 'fenced', 1)
    return 'fenced'
  end
  job.attempt = ARGV[5]
end
if unjudged then
  return validate(KEYS[1], job, ARGV[1], now, ARGV[1], ARGV[7], ARGV[8], fields)
end
end_job(KEYS[1], job, ARGV[1], now, ARGV[2], ARGV[3], ARGV[1], fields)
return 'ok'
