-- A job's record: its history, what scripts judge by, and the steps of its plan that have begun.
local UNSTARTED, UNPUBLISHED, DEADLINES = 'torpor:outbox:awaited', 'torpor:outbox:requests', 'torpor:deadlines' -- jobs, by when something is due
local SHOWN_RUNS = 20 -- of a step in a token stream: one that waits for a day would fill it
local TOOLS = 'tools' -- the step in which a job waits for its calls

-- The value of a field among field, value pairs, which begin at `from` if not at once.
local function value_in(fields, name, from)
  for i = from or 1, #fields, 2 do if fields[i] == name then return fields[i + 1] end end
end

-- A job's history, from and to JSON. An empty one is always '[]': cjson knows no empty list.
local function history_of(text) return cjson.decode(text or '[]') end
local function history_json(history) return #history > 0 and cjson.encode(history) or '[]' end

-- Close the last attempt of a history, unless it is closed: its answer waits for steps.
local function close_attempt(history, outcome, now)
  if #history > 0 and not history[#history].ended_ms then
    history[#history].outcome = outcome
    history[#history].ended_ms = now
  end
end

-- What the scripts judge by, of a job's record, in one read; `false` for a field that it has not.
local FIELDS = {'state', 'attempt', 'failures', 'token_count', 'history', 'tenant', 'tenant_key', 'model', 'queues', 'lane', 'source',
  'event_id', 'deadline_ms', 'lease_id', 'lease_until_ms', 'started_ms', 'first_token_ms', 'gpu_ms', 'restart', 'sha', 'conversation', 'cache',
  'follows', 'step', 'prepared_sha', 'after', 'after_queues', 'hold', 'candidate_state', 'spent', 'usage', 'url', 'key_id', 'counted_usage',
  'counted_gpu_ms', 'fallback', 'turns', 'turn_begin', 'epoch', 'calling'}
local function read_job(key)
  local job = {}
  for i, value in ipairs(redis.call('HMGET', key, unpack(FIELDS))) do job[FIELDS[i]] = value end
  return job
end

-- Why a run of a step may write nothing, which is counted where the job goes on without it; nil where it may.
local function run_refusal(key, job, attempt, plan_version)
  if not job.state then return 'missing' end
  if job.state ~= 'queued' and job.state ~= 'in_progress' then return 'terminal' end
  if job.attempt == attempt and redis.call('HGET', key, 'plan_version') == plan_version then return nil end
  redis.call('HINCRBY', key, 'fenced', 1)
  return 'fenced'
end

-- A job's steps that have begun, in `pipeline`: a line each, of name, status, start, end, runs and detail (JSON, which has no line break).
local LINE = '^(%S+) (%S+) (%d+) (%d+) (%d+) (.*)$'
local function step_line(pipeline, name)
  for line in string.gmatch(pipeline or '', '[^\n]+') do
    local step, status, started, ended, runs, detail = string.match(line, LINE)
    if step == name then
      return {name = step, status = status, started = started, ended = ended, runs = tonumber(runs), detail = detail}
    end
  end
end

-- Write the line of a step, in its place or at the end; without `line`, drop it.
local function put_step(key, pipeline, line, name)
  local kept, is_new, text = {}, line, nil
  if line then
    text = string.format('%s %s %s %s %d %s', line.name, line.status, string.format('%d', line.started), string.format('%d', line.ended),
      line.runs, line.detail)
  end
  for each in string.gmatch(pipeline or '', '[^\n]+') do
    if string.match(each, '^(%S+) ') ~= (line and line.name or name) then
      kept[#kept + 1] = each
    elseif line then
      kept[#kept + 1], is_new = text, nil
    end
  end
  if is_new then kept[#kept + 1] = text end
  redis.call('HSET', key, 'pipeline', table.concat(kept, '\n'))
end
