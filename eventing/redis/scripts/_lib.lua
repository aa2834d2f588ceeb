-- What several scripts share. `eventing.redis.script` puts it in front of each script that says `-- USES _lib`.
-- The names stand in `eventing.redis.keys` too; `tests/unit/eventing/test_script_names.py` holds the two together.
local ENDED, ENDED_KEPT = 'torpor:ended', 100000
local FEED_KEPT = 10000 -- of a tenant's own ends
local DEADLINES, UNSTARTED, UNPUBLISHED = 'torpor:deadlines', 'torpor:outbox:awaited', 'torpor:outbox:requests'
local UNARCHIVED, LARGE = 'torpor:unarchived', 65536 -- bytes of result and tokens (16 each) that do not stay in Redis
local GROUP = 'torpor'
local LEAVING = 'torpor:leaving'
local CLOCK, CLOCK_SLACK_MS = 'torpor:clock', 1000
local SWEEP_AFTER_MS = 10000 -- a note this old was not cleared by its writer
local REVISIONS = 'torpor:cache:revisions'
local MOST_FOLLOWERS = 10000 -- of one job
local APPROVALS_DUE = 'torpor:approvals:due'
local APPROVALS_UNTOLD = 'torpor:approvals:untold'
local TOOLS = 'tools' -- the step in which a job waits for its calls
local SHOWN_RUNS = 20 -- of a step in a token stream: one that waits for a day would fill it

-- Store time in milliseconds.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A store's clock can go back: it is set, or another host takes over. What a time index holds would then be due that much later. `CLOCK`
-- keeps the newest time at which each index was read; when it is ahead of now, the whole index is moved back by the difference.
local function follow_clock(index, now)
  local seen = tonumber(redis.call('HGET', CLOCK, index) or 0)
  if seen > now + CLOCK_SLACK_MS then
    local rows = redis.call('ZRANGE', index, 0, -1, 'WITHSCORES')
    for i = 1, #rows, 2 do redis.call('ZADD', index, string.format('%d', rows[i + 1] + now - seen), rows[i]) end
  end
  redis.call('HSET', CLOCK, index, now)
end

-- How long a lease lasts yet, in milliseconds. No lease is given for longer than `lease_ms`: one that ends later was given before the
-- store's clock went back, and lasts `lease_ms` from now on.
local function lease_left(key, lease_until, now, lease_ms)
  local left, most = (lease_until or 0) - now, tonumber(lease_ms)
  if left <= most then return left end
  redis.call('HSET', key, 'lease_until_ms', now + most)
  return most
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

-- What names an event in a queue, as `eventing.job.job.event_identity` says it.
local function event_identity(source, event_id, tenant)
  if tenant == 'default' or string.sub(source, 1, 8) == '/torpor/' then return source .. '\0' .. event_id end
  return source .. '\0' .. event_id .. '\0' .. tenant
end

-- Put an event into a queue, unless the same event is still in it (docs/adr/0003): a ticket stream counts, a sorted set a lane orders.
-- One that is claimed by a consumer is delivered once more when those are done with it, unless it `is_reply`: what they do may have been
-- decided before this event was sent (a dead letter redriven before it was settled). Gives 1 when it was added, 0 for a duplicate.
local function enqueue(prefix, lane, member, record, tenant, is_reply, now)
  local events, ready, fair, tries = prefix .. 'events', prefix .. 'ready:' .. lane, prefix .. 'fair:' .. lane, prefix .. 'tries'
  local stamped = string.format('%d ', now) .. record
  if redis.call('HSETNX', events, member, stamped) == 0 then
    local is_in_hand = redis.call('HEXISTS', tries, member) == 1
    if is_in_hand and not is_reply then redis.call('HSET', tries, '\0again:' .. member, 1) end
    if is_in_hand or redis.call('ZSCORE', ready, member) then return 0 end
    -- Known, but neither waiting nor in flight: half of an earlier put survived a power cut (Redis 7.0 can do that). Put it again.
    redis.call('HSET', events, member, stamped)
  end
  redis.call('XADD', prefix .. 'tickets', '*', 't', '1')
  -- Start-time fair queuing (Goyal 1996): a tenant's next event starts one step after its last, never before the lane's own clock.
  local tags = redis.call('HMGET', fair, 'clock', 'last:' .. tenant)
  local start = math.max(tonumber(tags[1] or 0), tonumber(tags[2] or 0))
  redis.call('HSET', fair, 'last:' .. tenant, string.format('%.17g', start + 1))
  redis.call('ZADD', ready, string.format('%.17g', start), member)
  return 1
end

-- Take an event out of a queue, with its ticket, unless it is in flight, so that no predictor is started for it.
local function void_entry(prefix, lane, member)
  local tickets, held, retry = prefix .. 'tickets', prefix .. 'held', prefix .. 'retry'
  local ticket
  if redis.call('ZREM', prefix .. 'ready:' .. lane, member) == 1 then
    if redis.call('EXISTS', prefix .. 'ready:' .. lane) == 0 then redis.call('DEL', prefix .. 'fair:' .. lane) end
    -- Unclaimed tickets are alike: the next one is given up. Deleting it would make KEDA's lag unknown.
    local read = redis.pcall('XREADGROUP', 'GROUP', GROUP, 'void', 'COUNT', 1, 'STREAMS', tickets, '>')
    if read and not read.err and read[1] then ticket = read[1][2][1][1] end
  elseif redis.call('HEXISTS', prefix .. 'tries', member) == 1 then
    local pairs_held = redis.call('HGETALL', held)
    for i = 1, #pairs_held, 2 do
      if pairs_held[i + 1] == member and redis.call('ZREM', retry, pairs_held[i]) == 1 then ticket = pairs_held[i] end
    end
    if not ticket then return end -- claimed by a consumer, who will learn that the job has ended
    redis.call('HDEL', held, ticket)
  end
  if ticket then redis.call('XACK', tickets, GROUP, ticket) end
  redis.call('HDEL', prefix .. 'events', member)
  redis.call('HDEL', prefix .. 'tries', member, '\0again:' .. member, '\0refused:' .. member, '\0refused_ms:' .. member,
    '\0passed:' .. member)
end

-- Jobs that have a predictor before them, of a model that another stands in for: by model, since when; and whether it starts. Of any other
-- model nothing is kept. `fallback` is that field of a job's record: 'MODEL OTHER' where OTHER stands in for MODEL, 'MODEL none' or 'MODEL -' for a job that waits for MODEL whatever comes.
local function starting(model) return 'torpor:starting:' .. model, 'torpor:starting:' .. model .. ':jobs' end
local function starting_model(fallback) return fallback and string.match(fallback, '^(%S+) %S+$') end
local function watch_start(job_id, fallback, now)
  local model = starting_model(fallback)
  if model and fallback ~= model .. ' none' and fallback ~= model .. ' -' then
    local _, jobs = starting(model)
    redis.call('ZADD', jobs, now, job_id)
  end
end
local function unwatch_start(job_id, fallback)
  local model = starting_model(fallback)
  if model then
    local _, jobs = starting(model)
    redis.call('ZREM', jobs, job_id)
  end
end
local function note_began(fallback, now)
  local model = starting_model(fallback)
  if model then redis.call('HSET', (starting(model)), 'began_ms', now, 'tripped_ms', 0, 'probe', '') end
end
-- The value of a field among field, value pairs, which begin at `from` if not at once.
local function value_in(fields, name, from)
  for i = from or 1, #fields, 2 do if fields[i] == name then return fields[i + 1] end end
end

-- Let a conversation live for its whole time again, from now on.
local function keep_conversation(conversation)
  local keep_s = redis.call('HGET', conversation, 'keep_s')
  for _, part in ipairs({'', ':items', ':order', ':vectors'}) do redis.call('EXPIRE', conversation .. part, keep_s) end
end

-- Put items (id, JSON in turn) at the end of a conversation. One whose id is there already stays as it is, so that the same items again
-- change nothing.
local function append_items(conversation, pairs_of_items)
  local seq, added = tonumber(redis.call('HGET', conversation, 'seq')), 0
  for i = 1, #pairs_of_items, 2 do
    if redis.call('HSETNX', conversation .. ':items', pairs_of_items[i], pairs_of_items[i + 1]) == 1 then
      seq, added = seq + 1, added + #pairs_of_items[i + 1]
    end
    redis.call('ZADD', conversation .. ':order', 'NX', seq, pairs_of_items[i])
  end
  redis.call('HSET', conversation, 'seq', seq)
  redis.call('HINCRBY', conversation, 'bytes', added)
  keep_conversation(conversation)
end

-- A value of a result as text, or as a table; an empty one where it is something else. A foreign predictor's result may hold anything.
local function text_of(value) return type(value) == 'string' and value or '' end
local function table_of(value) return type(value) == 'table' and value or {} end

-- The hosts that links of a job's answer may lead to, as a JSON field of its items; '' where its plan does not retrieve, so that nothing can
-- have been planted. The text is kept as it was generated; `eventing.store.conversation.shown` leaves the others out where it is read.
local function link_hosts_field(key)
  local plan = table_of(cjson.decode(redis.call('HGET', key, 'plan') or '{}'))
  local hosts, is_filtered = {}, false
  for _, step in ipairs(table_of(plan.steps)) do
    local name, settings = table_of(step).name, table_of(table_of(step).settings)
    if name == 'retrieve' or (name == 'tools' and type(settings.links) == 'table') then
      is_filtered = true
      for _, host in ipairs(table_of(name == 'tools' and settings.links or settings.allowed_hosts)) do
        if type(host) == 'string' then hosts[#hosts + 1] = name == 'tools' and host or string.lower(host) end
      end
    end
  end
  return is_filtered and '"link_hosts":' .. (#hosts > 0 and cjson.encode(hosts) or '[]') .. ',' or ''
end

-- The items of a message of the model: its thought, its text, and calls of the caller's functions, in order.
local function add_message(add, tail, message, cut)
  local thought = text_of(message.reasoning)
  if thought == '' then thought = text_of(message.reasoning_content) end
  if thought ~= '' then
    add('rs_' .. tail, 'reasoning', '"summary":[],"content":[{"type":"reasoning_text","text":' .. cjson.encode(thought)
      .. '}],"status":"completed"')
  end
  if text_of(message.content) ~= '' then
    add('msg_' .. tail, 'message', '"role":"assistant","status":"' .. (cut and 'incomplete' or 'completed')
      .. '","content":[{"type":"output_text","text":' .. cjson.encode(message.content) .. ',"annotations":[],"logprobs":[]}]')
  end
end
local function add_function_call(add, tail, place, name, call_id, arguments)
  local id = 'fc_' .. tail .. '_' .. place
  if name ~= '' then -- a call of nothing could be given to no engine again
    add(id, 'function_call', '"call_id":' .. cjson.encode(call_id ~= '' and call_id or id) .. ',"name":' .. cjson.encode(name)
      .. ',"arguments":' .. cjson.encode(arguments) .. ',"status":"completed"')
  end
end

-- The item of a call that was run here, as `api.view.items.tools` makes it, of a job that has ended.
local function add_server_call(add, tail, call)
  local named = '"server_label":' .. cjson.encode(call.server) .. ',"name":' .. cjson.encode(text_of(call.tool) ~= '' and call.tool or call.name)
    .. ',"arguments":' .. cjson.encode(text_of(call.arguments))
  if call.state == 'awaiting_approval' then
    add(call.approval_id, 'mcp_approval_request', named)
    return
  end
  local output, failed, status = text_of(call.output), 'null', 'incomplete'
  if call.state == 'returned' and call.is_error ~= 1 then
    status = 'completed'
  elseif call.state == 'returned' then
    status = 'failed'
    failed = '{"type":"mcp_tool_execution_error","content":[{"type":"text","text":' .. cjson.encode(output) .. '}]}'
  else
    if call.state == 'denied' then status = 'failed' end
    if output == '' then output = text_of(call.reason) end
    if output == '' then output = 'the call was not carried out' end
    failed = '{"type":"mcp_protocol_error","code":-32000,"message":' .. cjson.encode(output) .. '}'
  end
  local asked, own = text_of(call.approval_id), 'mcpr_' .. tail .. '_'
  if string.sub(asked, 1, #own) == own then asked = '' end -- an item of this very job
  add(string.format('mcp_%s_%d_%d', tail, call.turn, call.place), 'mcp_call', named .. ',"status":"' .. status .. '","output":'
    .. (status == 'completed' and cjson.encode(output) or 'null') .. ',"error":' .. failed
    .. ',"approval_request_id":' .. (asked ~= '' and cjson.encode(asked) or 'null'))
end

-- The items of the turns before a job's answer; gives whether the answer is the last of them.
local function add_turns(add, key, tail, turns)
  local ends = false
  for number = 1, tonumber(turns) do
    local turn = cjson.decode(redis.call('HGET', key, 'turn:' .. number) or '{}')
    local own = number == 1 and tail or tail .. '_' .. number
    if turn.carried ~= 1 then add_message(add, own, cjson.decode(turn.message or '{}'), false) end
    local after = {}
    for place = 0, (turn.calls or 0) - 1 do
      local call = cjson.decode(redis.call('HGET', key, string.format('call:%d.%d', number, place)) or '{}')
      if text_of(call.server) == '' then
        if turn.carried ~= 1 then add_function_call(add, own, place, text_of(call.name), text_of(call.call_id), text_of(call.arguments)) end
      elseif turn.carried ~= 1 or call.carried ~= 1 then
        after[#after + 1] = call
      end
    end
    for _, call in ipairs(after) do add_server_call(add, tail, call) end
    ends = turn.ends == 1
  end
  return ends
end

-- The items of an answer as id, JSON in turn: as `api.view.response.output_items` makes them, without log probabilities and lists of servers.
local function answer_items(key, job_id, result, turns)
  local tail, items, hosts = string.sub(job_id, 5), {}, link_hosts_field(key)
  local function add(id, kind, rest)
    items[#items + 1] = id
    items[#items + 1] = '{"id":"' .. id .. '","type":"' .. kind .. '",' .. hosts .. rest .. '}'
  end
  if turns and add_turns(add, key, tail, turns) then return items end
  local choice = table_of(table_of(table_of(cjson.decode(result)).choices)[1])
  local message = table_of(choice.message)
  local own = turns and string.format('%s_%d', tail, turns + 1) or tail
  add_message(add, own, message, choice.finish_reason == 'length' or choice.finish_reason == 'content_filter')
  for n, each in ipairs(table_of(message.tool_calls)) do
    local call = table_of(each)
    local named = table_of(call['function'])
    add_function_call(add, own, n - 1, text_of(named.name), text_of(call.id), text_of(named.arguments))
  end
  return items
end

-- Take a conversation for one job, so that no two add to it at once; `seq` is the number that it was read at, '' for any. Gives nothing, or
-- why not. A job that has it and has ended, or is gone, is no obstacle.
local function begin_turn(conversation, job_id, seq)
  local held = redis.call('HMGET', conversation, 'tenant', 'seq', 'job')
  if not held[1] then return 'gone' end
  if held[3] and held[3] ~= job_id then
    local state = redis.call('HGET', 'torpor:{' .. held[3] .. '}', 'state')
    if state == 'queued' or state == 'in_progress' then return 'locked' end
  end
  if seq ~= '' and seq ~= held[2] then return 'moved' end
  redis.call('HSET', conversation, 'job', job_id)
  keep_conversation(conversation)
end

-- Let the conversation of a job go, and put what an answered job was asked and answered at its end. Called before the job's state
-- changes: when a power cut keeps only the first half of a script (Redis 7.0 can do that), the job ends again and adds what is missing.
local function end_turn(key, job_id, conversation_id, state, result, turns)
  local conversation = 'torpor:{' .. conversation_id .. '}'
  if redis.call('HGET', conversation, 'job') ~= job_id then return end -- deleted meanwhile
  if state == 'completed' or state == 'incomplete' then
    local items = cjson.decode(redis.call('HGET', key, 'turn') or '[]')
    if result then
      for _, each in ipairs(answer_items(key, job_id, result, turns)) do items[#items + 1] = each end
    end
    append_items(conversation, items)
    redis.call('HDEL', key, 'turn')
  end
  redis.call('HDEL', conversation, 'job')
end

-- The names of a tenant's cached answers: an entry, the index of a model's entries by when they expire, and the counters that void them.
local function cache_entry(list, name) return 'torpor:cache:entry:' .. list .. ':' .. name end
local function cache_index(list, model) return 'torpor:cache:index:' .. list .. ':' .. string.gsub(model, '[^%w._-]', function(c)
  return string.format('%%%02X', string.byte(c)) end) end
local function cache_epoch(list, model)
  local counts = redis.pcall('HMGET', 'torpor:cache:epochs:' .. list, '*', model)
  if counts.err then return false end
  return (counts[1] or '0') .. ':' .. (counts[2] or '0')
end
local function cache_revision(model)
  local revision = redis.pcall('HGET', REVISIONS, model)
  return type(revision) == 'string' and revision or ''
end

-- The vectors of questions that were answered, of one tenant and one partition of its requests.
local function semantic_vectors(list, partition) return 'torpor:cache:vectors:' .. list .. ':' .. partition end

-- Changes with every vector of a partition, so that a process knows whether it knows them all.
local function note_vectors(key, name) redis.call('HSET', key, 'version', now_ms() .. name) end
local function drop_vector(list, partition, name)
  local key = semantic_vectors(list, partition)
  redis.call('HDEL', key, name)
  if redis.call('HLEN', key) <= 1 then redis.call('DEL', key) else note_vectors(key, name) end
end

-- Forget the answer of a job for questions of the same meaning; a mark stays, so that it is not kept again.
local function forget_semantic(list, job_id, model, is_marked)
  local name = 'semantic_' .. string.sub(job_id, 5)
  local entry = cache_entry(list, name)
  local partition = redis.call('HGET', entry, 'partition')
  if not partition then return 0 end
  drop_vector(list, partition, name)
  redis.call('ZREM', 'torpor:cache:semantic:' .. list, partition .. ' ' .. name)
  if model then redis.call('ZREM', cache_index(list, model), name) end
  if is_marked then
    redis.call('HDEL', entry, 'job', 'partition')
    redis.call('HSET', entry, 'forgotten', now_ms())
  else
    redis.call('DEL', entry)
  end
  return 1
end

-- Keep the answer of a job that ended, for the same request; or, when it is none to be served, forget that it was to come. Not when
-- the model's weights changed meanwhile, since it is not known which of them answered, or the tenant's answers were voided.
local function keep_answer(job_id, list, job, state, now)
  local use = cjson.decode(job.cache)
  if use.status ~= 'miss' or not use.key then return end
  local entry = cache_entry(list, use.key)
  local held = redis.pcall('HMGET', entry, 'job', 'revision', 'epoch')
  if held.err or held[1] ~= job_id then return end
  local revision = cache_revision(job.model)
  if state ~= 'completed' or (held[2] ~= '' and held[2] ~= revision) or held[3] ~= cache_epoch(list, job.model) then
    redis.call('DEL', entry)
    return
  end
  local index = cache_index(list, job.model)
  redis.call('HSET', entry, 'revision', revision)
  redis.call('EXPIRE', entry, use.ttl_s)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
  redis.call('ZADD', index, now + 1000 * use.ttl_s, use.key)
  redis.call('PEXPIREAT', index, math.floor(math.max(now + 1000 * use.ttl_s, redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2])))
end

local NO_USAGE = '{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'

-- Tokens beside those of the answer: a list of `kind` (`hedged`, `retried`, `repaired`, `cascaded`, `turn`), model, and both counts; of `turn`
-- the details of both as well. An older version wrote the sum of what was thrown away.
local function spent_list(spent)
  local list = spent and cjson.decode(spent) or {}
  if list.prompt_tokens or list.completion_tokens then
    return {{kind = 'repaired', model = '', prompt_tokens = list.prompt_tokens or 0, completion_tokens = list.completion_tokens or 0}}
  end
  return list
end
-- Add the counts of one table of details to another; nothing that is no number.
local DETAILS = {'prompt_tokens_details', 'completion_tokens_details'}
local function add_details(sum, more, sign)
  for _, name in ipairs(DETAILS) do
    for detail, count in pairs(type(more[name]) == 'table' and more[name] or {}) do
      if type(sum[name]) ~= 'table' then sum[name] = {} end
      if type(count) == 'number' then sum[name][detail] = math.max(0, (tonumber(sum[name][detail]) or 0) + sign * count) end
    end
  end
end
local function add_spent(list, kind, model, prompt, completion)
  for _, each in ipairs(list) do
    if each.kind == kind and each.model == model then
      each.prompt_tokens, each.completion_tokens = each.prompt_tokens + prompt, each.completion_tokens + completion
      return each
    end
  end
  list[#list + 1] = {kind = kind, model = model, prompt_tokens = prompt, completion_tokens = completion}
  return list[#list]
end

-- A usage (JSON) with what was spent beside it, in its sums and in `extra`. `spent` may be missing.
local function usage_with(usage, spent)
  if not spent then return usage end
  local sum, extra = cjson.decode(usage), spent_list(spent)
  for _, each in ipairs(extra) do
    sum.prompt_tokens = (tonumber(sum.prompt_tokens) or 0) + each.prompt_tokens
    sum.completion_tokens = (tonumber(sum.completion_tokens) or 0) + each.completion_tokens
    sum.total_tokens = (tonumber(sum.total_tokens) or 0) + each.prompt_tokens + each.completion_tokens
    add_details(sum, each, 1)
  end
  for _, each in ipairs(type(sum.extra) == 'table' and sum.extra or {}) do
    local at = add_spent(extra, each.kind, each.model, each.prompt_tokens, each.completion_tokens)
    add_details(at, each, 1)
  end
  sum.extra = #extra > 0 and extra or nil
  return cjson.encode(sum)
end

-- What was spent when an answer of this usage, of a model, is thrown away, or asked for tools: all of it.
local function spent_with(usage, kind, model)
  local all = cjson.decode(usage or NO_USAGE)
  local list = type(all.extra) == 'table' and all.extra or {}
  local prompt, completion = tonumber(all.prompt_tokens) or 0, tonumber(all.completion_tokens) or 0
  local own = {}
  if kind == 'turn' then add_details(own, all, 1) end
  for _, each in ipairs(list) do
    prompt, completion = prompt - each.prompt_tokens, completion - each.completion_tokens
    if kind == 'turn' then add_details(own, each, -1) end
  end
  add_details(add_spent(list, kind, model, math.max(0, prompt), math.max(0, completion)), own, 1)
  return cjson.encode(list)
end

-- Put what was spent into the usage of a job that ends without having been judged.
local function with_spent(job, fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'usage' then
      fields[i + 1] = usage_with(fields[i + 1], job.spent)
      return
    end
  end
  fields[#fields + 1], fields[#fields + 2] = 'usage', usage_with(NO_USAGE, job.spent)
end

-- What a job used in the life that ends, for its entry in the stream of ends: not what an earlier one, which was redriven, was counted for.
local function used_by(job, fields)
  local usage, gpu_ms = value_in(fields, 'usage') or job.usage or '', value_in(fields, 'gpu_ms') or job.gpu_ms or 0
  if job.counted_usage and usage ~= '' then
    local now, before = cjson.decode(usage), cjson.decode(job.counted_usage)
    local rest = {}
    for _, name in ipairs({'prompt_tokens', 'completion_tokens', 'total_tokens'}) do
      rest[name] = math.max(0, (tonumber(now[name]) or 0) - (tonumber(before[name]) or 0))
    end
    usage = cjson.encode(rest)
  end
  return usage, string.format('%d', math.max(0, gpu_ms - (job.counted_gpu_ms or 0)))
end

-- A job that waits for tool calls has the field `calling` (JSON), of its newest turn: `turn`, `epoch`, whether the job `ends` with it (1), how
-- many calls may run at once (`parallel`), how long a person is waited for (`ask_ms`), since when only people are (`paused_ms`, 0 for not), the
-- calls' `states` in the order of their places, and by place the `queues` that have a call's event.
local FINAL = {returned = true, denied = true, not_run = true, unknown = true, client = true}
local WAITING = {awaiting_approval = true, awaiting_input = true, in_doubt = true}
local MAY_HAVE_RUN = {sent = true, accepted = true, in_doubt = true, unknown = true}
local function call_key(job_id, calling, place) return string.format('%s:%d.%d:%d', job_id, calling.turn, place, calling.epoch) end
local function call_member(job_id, calling, place) return '/torpor/tools\0' .. call_key(job_id, calling, place) end
local function held_field(calling, place) return string.format('held:%d.%d', calling.turn, place) end
local function approval_member(job_id, calling, place) return string.format('%s %d.%d', job_id, calling.turn, place) end
local function approvals_of(job) return 'torpor:approvals:of:' .. (job.tenant_key or job.tenant) end
local function drop_approval(job, job_id, calling, place)
  local member = approval_member(job_id, calling, place)
  redis.call('ZREM', APPROVALS_DUE, member)
  redis.call('ZREM', approvals_of(job), member)
end

-- A job whose tools run is expected back at the replica that has its prompt: `calling.expected` has until when (`until_ms`), that replica
-- (`owner`), and the predictor's `queues`, each of which has the sorted set `expected` of such jobs by that time.
local function set_expected(calling, job_id, until_ms)
  local expected = calling.expected
  if not expected or expected.told_ms == until_ms then return end
  expected.told_ms = until_ms
  for _, prefix in ipairs(expected.queues) do
    if until_ms > 0 then
      redis.call('ZADD', prefix .. 'expected', until_ms, expected.owner .. ' ' .. job_id)
    else
      redis.call('ZREM', prefix .. 'expected', expected.owner .. ' ' .. job_id)
    end
  end
end

-- Take the calls of a job that ends out of queues and lists. Those that run learn of the end by their leases. What a redrive goes on from
-- stays.
local function end_calls(key, job, is_dead)
  local calling, job_id, fields = cjson.decode(job.calling), string.match(key, '{(.*)}'), {}
  for i, state in ipairs(calling.states) do
    local place = i - 1
    if WAITING[state] then drop_approval(job, job_id, calling, place) end
    if not FINAL[state] then
      for _, prefix in ipairs(calling.queues[tostring(place)] or {}) do void_entry(prefix, job.lane, call_member(job_id, calling, place)) end
    end
    fields[i] = held_field(calling, place)
  end
  redis.call('HDEL', key, unpack(fields))
  set_expected(calling, job_id, 0)
  if is_dead then
    calling.queues, calling.paused_ms, calling.expected = {}, 0, nil
    redis.call('HSET', key, 'calling', cjson.encode(calling))
  else
    redis.call('HDEL', key, 'calling')
  end
end

-- Take the tokens from place `begin` on out of a stream; the turns before stay.
local function drop_turn(stream, begin)
  if begin == 0 then return redis.call('XTRIM', stream, 'MAXLEN', 0) end
  for _, entry in ipairs(redis.call('XREVRANGE', stream, '+', '-')) do
    local kind, index = entry[2][2], value_in(entry[2], 'index')
    if kind == 'turn' then return end
    if kind == 'tokens' and tonumber(index) >= begin then redis.call('XDEL', stream, entry[1]) end
  end
end

-- A job's deadline, 0 for none: it stands still while only people are awaited.
local function deadline_of(job)
  if job.calling and cjson.decode(job.calling).paused_ms > 0 then return 0 end
  return tonumber(job.deadline_ms or 0)
end

-- The one way into a terminal state: record, stream, lists, queues, and the entry for the ended stream (docs/adr/0140).
-- `job` is the record as `read_job` gave it in this script; `outcome` closes a running attempt; `fields` are field, value pairs
-- (result, usage, error).
local function end_job(key, job, state, now, retention_s, dead, outcome, fields)
  local job_id, list = string.match(key, '{(.*)}'), job.tenant_key or job.tenant
  local history = history_of(job.history)
  if job.state == 'in_progress' then close_attempt(history, outcome, now) end
  if job.spent and not job.candidate_state then with_spent(job, fields) end
  local usage, gpu_ms = used_by(job, fields)
  -- First: Redis 7.0 can apply the first half of a script after a power cut. An announced end that is not in the record is detected.
  redis.call('XADD', ENDED, 'MAXLEN', '~', ENDED_KEPT, '*', 'job', job_id, 'tenant', job.tenant, 'model', job.model or '',
    'lane', job.lane, 'attempt', job.attempt, 'state', state, 'dead', dead, 'at_ms', now, 'usage', usage, 'gpu_ms', gpu_ms,
    'key', job.key_id or '', 'url', job.url or '')
  redis.call('XADD', 'torpor:results:' .. list, 'MAXLEN', '~', FEED_KEPT, '*', 'job', job_id, 'attempt', job.attempt)
  local size, result = 16 * (tonumber(job.token_count) or 0), value_in(fields, 'result')
  if job.conversation then end_turn(key, job_id, job.conversation, state, result, job.turns) end
  -- Before the state: what is shown of an ended job is all that its stream has.
  local is_withheld = value_in(fields, 'incomplete') ~= nil
  local is_over = state == 'cancelled' or (state == 'failed' and dead ~= '1')
  if is_withheld or (job.hold == 'whole' and is_over) then redis.call('XTRIM', key .. ':tokens', 'MAXLEN', 0) end
  redis.call('HSET', key, 'state', state, 'attempt', job.attempt, 'finished_ms', now, 'lease_owner', '', 'lease_until_ms', 0,
    'dead', dead, 'history', history_json(history), unpack(fields))
  if state ~= 'failed' and job.prepared_sha then redis.call('HDEL', key, 'prepared', 'prepared_sha') end
  if job.after and job.after ~= '' then redis.call('HDEL', key, 'sealed') end
  if not job.has_stream then
    local entry = {'kind', 'state', 'state', state, 'attempt', job.attempt, 'at_ms', now}
    if job.hold and not is_withheld and (state == 'completed' or state == 'incomplete') then
      entry[9], entry[10] = 'shown', job.token_count
    end
    redis.call('XADD', key .. ':tokens', '*', unpack(entry))
  end
  -- A dead letter is redriven where it stopped.
  if job.candidate_state and (state ~= 'failed' or dead ~= '1') then redis.call('HDEL', key, 'candidate', 'candidate_state', 'withheld', 'spent') end
  redis.call('EXPIRE', key, retention_s)
  redis.call('EXPIRE', key .. ':tokens', retention_s)
  redis.call('ZADD', LEAVING, now + 1000 * retention_s, list .. ' ' .. job_id)
  -- Not of a failed job: a redrive goes on from its tokens.
  if size + #(result or '') > LARGE and state ~= 'failed' then redis.call('ZADD', UNARCHIVED, now, job_id) end
  if dead == '1' then redis.call('ZADD', 'torpor:dead:' .. list, now, job_id) end
  if job.deadline_ms and job.deadline_ms ~= '0' then redis.call('ZREM', DEADLINES, job_id) end
  redis.call('ZREM', UNSTARTED, job_id)
  unwatch_start(job_id, job.fallback)
  if job.follows then redis.call('ZREM', 'torpor:{' .. job.follows .. '}:followers', job_id) end
  if job.cache then keep_answer(job_id, list, job, job.turns and 'failed' or state, now) end -- what tools said is not kept
  if not job.queues then redis.call('ZREM', UNPUBLISHED, job_id) end
  if job.calling then end_calls(key, job, state == 'failed' and dead == '1') end
  if (job.state == 'queued' or (job.step and job.step ~= '')) and job.queues then
    local member = event_identity(job.source, job.event_id, job.tenant)
    for _, prefix in ipairs(cjson.decode(job.queues)) do void_entry(prefix, job.lane, member) end
  end
end

-- Keep an answer for the steps that judge it, and put the event of the first of them into its queues, or note that it is to be published.
-- `state` is that in which the job ends when they let it pass; `event` is the event's record. No lease is needed from here on. Gives
-- 'step_queued' where the event is in queues, 'validating' where it is noted.
local function validate(key, job, state, now, outcome, event, recheck_ms, fields)
  local job_id, history, kept = string.match(key, '{(.*)}'), history_of(job.history), {}
  local queues = job.after_queues and cjson.decode(job.after_queues) or {}
  if job.state == 'in_progress' then close_attempt(history, outcome, now) end
  for i = 1, #fields, 2 do
    kept[i], kept[i + 1] = fields[i] == 'result' and 'candidate' or fields[i], fields[i + 1]
    if fields[i] == 'usage' then kept[i + 1] = usage_with(fields[i + 1], job.spent) end
  end
  -- First: Redis 7.0 can apply the first half of a script after a power cut. An event that comes before its step is in the record does nothing.
  redis.call('ZADD', UNSTARTED, now + recheck_ms, job_id)
  unwatch_start(job_id, job.fallback)
  if #queues == 0 then redis.call('ZADD', UNPUBLISHED, now + SWEEP_AFTER_MS, job_id) end
  local member = event_identity(job.source, job.event_id, job.tenant)
  for _, prefix in ipairs(queues) do enqueue(prefix, job.lane, member, event, job.tenant, false, now) end
  if #queues > 0 then redis.call('HSET', key, 'queues', job.after_queues) end
  redis.call('HSET', key, 'state', 'in_progress', 'attempt', job.attempt, 'step', job.after, 'candidate_state', state, 'lease_owner', '',
    'lease_id', '', 'lease_until_ms', 0, 'history', history_json(history), unpack(kept))
  redis.call('XADD', key .. ':tokens', '*', 'kind', 'state', 'state', 'in_progress', 'phase', 'validating', 'attempt', job.attempt,
    'at_ms', now)
  return #queues > 0 and 'step_queued' or 'validating'
end

-- True where an ending is an answer that steps after the predictor judge first.
local function is_unjudged(job, state, fields)
  if not job.after or job.after == '' or (state ~= 'completed' and state ~= 'incomplete') then return false end
  return value_in(fields, 'incomplete') == nil -- not withheld already
end

-- End a job with the answer that its steps have let pass, or, with a `reason`, without its text.
local function end_judged(key, job, now, retention_s, reason, fields)
  local held = redis.call('HMGET', key, 'candidate', 'withheld')
  local state, has_result = job.candidate_state, value_in(fields, 'result') ~= nil
  if reason ~= '' then
    state = 'incomplete'
    fields[#fields + 1], fields[#fields + 2] = 'incomplete', reason
  end
  local result = held[1]
  if reason ~= '' then result = held[2] end
  if result and not has_result then fields[#fields + 1], fields[#fields + 2] = 'result', result end
  end_job(key, job, state, now, retention_s, '0', '', fields)
end

-- The error of a job, as JSON.
local function error_json(code, message) return cjson.encode({code = code, message = message, field = ''}) end
local LATE_WORDS = 'the deadline passed before the job ended'
local LATE = error_json('expired', LATE_WORDS)

-- End a job whose deadline has passed and that has no lease: failed; or, when steps have yet to judge its answer, with it, unless it is held
-- back. Then it ends without its text.
local function end_late(key, job, now, retention_s, dead_retention_s, outcome)
  if job.step == TOOLS and (job.calling or job.candidate_state) then -- what the model said last is no answer
    local n = 0
    for _, state in ipairs(job.calling and cjson.decode(job.calling).states or {}) do if MAY_HAVE_RUN[state] then n = n + 1 end end
    local words = n > 0 and string.format('%s; %d tool %s may have happened', LATE_WORDS, n, n == 1 and 'call' or 'calls') or LATE_WORDS
    return end_job(key, job, 'failed', now, dead_retention_s, '1', outcome, {'error', error_json('expired', words)})
  end
  if job.candidate_state then
    return end_judged(key, job, now, retention_s, job.hold and 'content_filter_unavailable' or '', {})
  end
  end_job(key, job, 'failed', now, dead_retention_s, '1', outcome, {'error', LATE})
end

-- End a job with the answer of another that ended, of the same request. `use` is the start of what it says of the cache, as JSON, to
-- which the usage that was saved is added. A stream of tokens that were started over, which no reader of this job saw, is left out.
local function end_with(key, job, from, state, now, retention_s, use, is_seen)
  local got = redis.call('HMGET', from, 'result', 'object', 'usage', 'token_count', 'restarts', 'pipeline', 'incomplete', 'routing')
  local fields = {'cache', use .. ',"saved_usage":' .. (got[3] or 'null') .. '}'}
  local function add(name, value) fields[#fields + 1], fields[#fields + 2] = name, value end
  if got[1] then add('result', got[1]) end
  if got[3] then add('usage', NO_USAGE) end
  if got[6] and got[6] ~= '' then add('pipeline', got[6]) end -- what its answer cites was found by these steps
  if got[2] then
    add('object', got[2])
    redis.call('ZADD', UNARCHIVED, now, string.match(key, '{(.*)}')) -- it gets an object of its own
  end
  if is_seen or not got[5] then
    job.has_stream = redis.call('COPY', from .. ':tokens', key .. ':tokens', 'REPLACE') == 1
    if job.has_stream then
      job.token_count = got[4]
      add('token_count', got[4])
    end
  end
  job.cache = nil
  if got[7] then add('incomplete', got[7]) end
  if got[8] then add('routing', got[8]) end
  end_job(key, job, state, now, retention_s, '0', '', fields)
end
