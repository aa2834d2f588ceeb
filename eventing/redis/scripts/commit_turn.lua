-- Commit the turn that a job's candidate is: the turn, its calls, and the event of each call that is to run, in one step. No call was out
-- before, and the text is not generated again. Compared with the run of the step as `advance` is.
-- USES _clock _job _spent _calls _tools
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 step, 2 attempt, 3 plan version, 4 recheck_ms, 5 retention_s of a job that ends with it, 6 detail of the step (JSON),
--       7 turn (JSON), 8 its calls as readers are shown them (JSON), 9.. the predictor's event: record, '1' to note that it is unpublished,
--       number of queues, prefixes of their keys; number of calls; then for each its JSON and its event, in the same form
-- gives 'ok' | 'done' (another run was first) | 'fenced' | 'terminal' | 'missing'
local key, stream, job = KEYS[1], KEYS[2], read_job(KEYS[1])
local refusal = run_refusal(key, job, ARGV[2], ARGV[3])
if refusal then return refusal end
local turn, now, job_id = cjson.decode(ARGV[7]), now_ms(), string.match(key, '{(.*)}')
if job.step ~= ARGV[1] or job.calling or not job.candidate_state or turn.number ~= (job.turns or 0) + 1 then return 'done' end
local take, calls, events = reader(9), {}, {}
local following = read_publication(take)
for i = 1, tonumber(take()) do calls[i], events[i] = cjson.decode(take()), read_publication(take) end

turn.committed_ms = now
local calling = {turn = turn.number, epoch = tonumber(job.epoch or 0), ends = turn.ends, parallel = turn.parallel, ask_ms = turn.ask_ms,
  paused_ms = 0, states = {}, queues = {}}
turn.epoch = calling.epoch
-- Notes first: Redis 7.0 can apply the first half of a script after a power cut.
redis.call('ZADD', UNSTARTED, now + ARGV[4], job_id)
local fields = {'turns', turn.number, 'turn:' .. turn.number, cjson.encode(turn)}
for _, call in ipairs(calls) do
  call.queued_ms = now
  if WAITING[call.state] then ask(job, job_id, calling, call, call.state, now) end
  if FINAL[call.state] then call.ended_ms = now end
  calling.states[call.place + 1] = call.state
  fields[#fields + 1], fields[#fields + 2] = call_field(turn.number, call.place), call_json(call)
end
expect_back(job, calling, calls, following.queues, turn.read_again_ms or 0, now)
fields[#fields + 1], fields[#fields + 2] = 'calling', cjson.encode(calling)
if turn.ends ~= 1 then
  local history = history_of(job.history)
  if #history > 0 then history[#history].outcome = 'turn' end
  for _, each in ipairs({'state', 'in_progress', 'history', history_json(history), 'spent', spent_with(job.usage, 'turn', job.model or '')}) do
    fields[#fields + 1] = each
  end
  job.spent = fields[#fields]
end
redis.call('HSET', key, unpack(fields))
job.turns = turn.number -- the job may end here
if turn.ends ~= 1 then
  redis.call('HDEL', key, 'candidate', 'candidate_state', 'withheld', 'usage')
  job.candidate_state, job.usage = false, false
end
local pipeline = redis.call('HGET', key, 'pipeline')
local before = step_line(pipeline, ARGV[1]) or {started = now, runs = 0}
put_step(key, pipeline, {name = ARGV[1], status = 'queued', started = before.started, ended = 0, runs = before.runs, detail = ARGV[6]})
redis.call('XADD', stream, '*', 'kind', 'turn', 'turn', turn.number, 'attempt', job.attempt, 'index', job.token_count, 'at_ms', now,
  'calls', ARGV[8])
for i, call in ipairs(calls) do
  if call.state == 'pending' then queue_or_hold(key, job, job_id, calling, call.place, events[i], now) end
end
go_on(key, stream, job, calling, following, now, ARGV[4], ARGV[5])
return 'ok'
