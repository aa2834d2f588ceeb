-- End a step: its outcome, and what follows in the same script, which is the event of the next step or of the predictor, or the end of the
-- job. Only the step that is next can end, in the life of the job and under the plan that its run began with.
-- USES _clock _job _queue _cache _spent _end
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 step, 2 attempt, 3 plan version, 4 status, 5 detail (JSON), 6 next step, 7 recheck_ms, 8 '1' to note that its event is unpublished,
--       9 state in which the job ends ('' for none), 10 its retention_s, 11 '1' for a dead letter,
--       12 what becomes of the answer that a step after the predictor judged: 'accept' (the job ends with it), 'again KIND MODEL' (this
--       model's is thrown away and made again; 'again' of an older version), 'changed' (`candidate` among the fields is in its place; with 9, `result`), '' for nothing, else why it is withheld,
--       13 event record, 14 number n of queues that want it, 15..14+n prefixes of their keys, 15+n number m of token batches, then for each:
--       index, number of tokens, ids, delta; then field, value pairs (prepared, prepared_sha, or result, usage, error, cache)
-- gives 'ok' | 'done' (another run was first) | 'fenced' | 'terminal' | 'missing'
local job = read_job(KEYS[1])
local refusal = run_refusal(KEYS[1], job, ARGV[2], ARGV[3])
if refusal then return refusal end
if job.step ~= ARGV[1] then return 'done' end
local is_turn = job.step == TOOLS and not job.candidate_state
if (job.calling or is_turn) and (ARGV[9] == '' or ARGV[12] ~= '') then return 'done' end -- its turn was committed; a failure still ends it
local now, n, verdict = now_ms(), tonumber(ARGV[14]), ARGV[12]
local kind, thrown = string.match(verdict, '^again (%a+) (.*)$')
if kind then verdict = 'again' end
local queues, m, at = {unpack(ARGV, 15, 14 + n)}, tonumber(ARGV[15 + n]), 16 + n
local batches, fields = {}, {unpack(ARGV, at + 4 * m)}
for i = 0, m - 1 do batches[i + 1] = {unpack(ARGV, at + 4 * i, at + 4 * i + 3)} end

local is_end = ARGV[9] ~= ''
-- What is thrown away, or was changed, is in no stream from here on.
local begin = tonumber(job.turn_begin or 0)
if verdict == 'again' or (verdict == 'changed' and m > 0) then drop_turn(KEYS[2], begin) end
if not is_end then
  -- First: Redis 7.0 can apply the first half of a script after a power cut. An event that comes before its step is in the record does nothing.
  local job_id, member = string.match(KEYS[1], '{(.*)}'), event_identity(job.source, job.event_id, job.tenant)
  redis.call('ZADD', UNSTARTED, now + ARGV[7], job_id)
  if ARGV[8] == '1' then redis.call('ZADD', UNPUBLISHED, now + SWEEP_AFTER_MS, job_id) end
  for _, prefix in ipairs(queues) do enqueue(prefix, job.lane, member, ARGV[13], job.tenant, false, now) end
  redis.call('HSET', KEYS[1], 'step', ARGV[6], unpack(fields))
  if n > 0 then redis.call('HSET', KEYS[1], 'queues', cjson.encode(queues)) end
  watch_start(job_id, value_in(fields, 'fallback'), now)
end
local pipeline = redis.call('HGET', KEYS[1], 'pipeline')
local before = step_line(pipeline, ARGV[1]) or {started = now, runs = 0}
put_step(KEYS[1], pipeline, {name = ARGV[1], status = ARGV[4], started = before.started, ended = now, runs = before.runs, detail = ARGV[5]})
redis.call('XADD', KEYS[2], '*', 'kind', 'step', 'step', ARGV[1], 'status', ARGV[4], 'attempt', job.attempt, 'at_ms', now, 'ms',
  now - before.started)
if verdict == 'again' then
  local history = history_of(job.history)
  if #history > 0 then history[#history].outcome = 'rejected' end
  redis.call('HSET', KEYS[1], 'state', 'queued', 'restart', 1, 'history', history_json(history), 'spent',
    spent_with(job.usage, kind or 'repaired', thrown or ''))
  redis.call('HDEL', KEYS[1], 'candidate', 'candidate_state', 'withheld')
  redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', 'queued', 'attempt', job.attempt, 'at_ms', now)
end
if verdict == 'changed' then job.restart = '1' end
if m > 0 then
  local restarted = job.restart == '1' and 1 or 0
  redis.call('XADD', KEYS[2], '*', 'kind', 'attempt', 'attempt', job.attempt, 'index', begin, 'restarted', restarted, 'at_ms', now)
  for _, each in ipairs(batches) do
    redis.call('XADD', KEYS[2], '*', 'kind', 'tokens', 'attempt', job.attempt, 'index', begin + each[1], 'ids', each[3], 'delta', each[4])
  end
  job.token_count = begin + batches[m][1] + batches[m][2]
  if not is_end then redis.call('HSET', KEYS[1], 'token_count', job.token_count) end
  for _, each in ipairs({'token_count', job.token_count, 'first_token_ms', now}) do fields[#fields + 1] = each end
end
if not is_end then return 'ok' end
if verdict ~= '' then
  local is_passed = verdict == 'accept' or verdict == 'changed'
  end_judged(KEYS[1], job, now, ARGV[10], is_passed and '' or verdict, fields)
  return 'ok'
end
for i = 1, #fields, 2 do
  if fields[i] == 'cache' and job.cache then
    -- Another job's answer: the exact cache does not keep it as this one's.
    keep_answer(string.match(KEYS[1], '{(.*)}'), job.tenant_key or job.tenant, job, 'failed', now)
    job.cache = nil
  end
end
end_job(KEYS[1], job, ARGV[9], now, ARGV[10], ARGV[11], '', fields)
return 'ok'
