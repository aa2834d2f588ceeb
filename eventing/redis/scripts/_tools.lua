-- What the scripts of tool calls share (docs/adr/0380). A turn and a call are flat JSON objects of texts and whole numbers.
-- USES _clock _job _queue _calls _end
local APPROVALS_UNTOLD = 'torpor:approvals:untold'
local TOLD = {
  denied = 'The call was not approved.',
  unanswered = 'No one approved the call in time.',
  unknown = 'It is not known whether the call was carried out: it may have happened.',
}
local EPOCH = 1000 -- numbers of leases and of questions begin at this in each epoch: no lease and no approval of an edited job's past is one of now
local SHOWN_BYTES = 4096 -- of a result in a stream entry
local PROGRESS_EVERY_MS, PROGRESS_SHARE = 1000, 200 -- what a call says of itself is noted so often, and not before a 200th of its time
local NOTED_BYTES, MOST_NOTED = 1024, 16 -- of results that came too late

-- The arguments from the `at`th on, one a call.
local function reader(at)
  return function()
    at = at + 1
    return ARGV[at - 1]
  end
end
-- How an event gets to its broker: its record, '1' to note that it is unpublished, and the number and the prefixes of its queues.
local function read_publication(take)
  local publication = {event = take(), is_noted = take() == '1', queues = {}}
  for i = 1, tonumber(take()) do publication.queues[i] = take() end
  return publication
end

-- At most `most` bytes of a text, without half a character at its end.
local function cut(text, most)
  if #text <= most then return text end
  while most > 0 and string.byte(text, most + 1) >= 128 and string.byte(text, most + 1) < 192 do most = most - 1 end
  return string.sub(text, 1, most)
end

local function call_field(turn, place) return string.format('call:%d.%d', turn, place) end
local function read_call(key, turn, place)
  local text = redis.call('HGET', key, call_field(turn, place))
  return text and cjson.decode(text)
end
-- True for a call that may have run and does no harm when it runs again. What this version does not know is as strict as `once`.
local function may_be_sent_again(call)
  local is_harmless = call.effect == 'read' or call.effect == 'keyed' or call.effect == 'repeatable'
  return is_harmless and (call.sends or 0) < (call.max_attempts or 3)
end
local KEPT = {turn = true, place = true, state = true, arguments = true, sends = true}
local function call_json(call)
  local record = {}
  for name, value in pairs(call) do
    if KEPT[name] or (value ~= '' and value ~= 0) then record[name] = value end
  end
  return cjson.encode(record)
end
-- Write a call, and its state into `calling`, which the caller writes.
local function put_call(key, calling, call)
  calling.states[call.place + 1] = call.state
  redis.call('HSET', key, call_field(call.turn, call.place), call_json(call))
end
local function put_calling(key, calling) redis.call('HSET', key, 'calling', cjson.encode(calling)) end

-- Tell readers of a job that a call changed.
local function tell(stream, call, now, progress)
  local entry = {'kind', 'call', 'turn', call.turn, 'place', call.place, 'status', call.state, 'at_ms', now,
    'ms', math.max(0, now - (call.sent_ms or call.queued_ms or now)), 'send', call.sends or 0}
  local function add(name, value)
    if value and value ~= '' and value ~= 0 then entry[#entry + 1], entry[#entry + 2] = name, value end
  end
  if FINAL[call.state] then add('output', cut(call.output or '', SHOWN_BYTES)) end
  add('name', call.name)
  add('is_error', call.is_error)
  add('approval_id', WAITING[call.state] and call.approval_id)
  add('approver', call.approver)
  add('reason', call.reason)
  add('progress', progress)
  redis.call('XADD', stream, '*', unpack(entry))
end

-- Ask a person about a call, which then waits for the decision in `state`.
local function ask(job, job_id, calling, call, state, now)
  call.state, call.asked, call.expires_ms = state, (call.asked or calling.epoch * EPOCH) + 1, now + calling.ask_ms
  call.approval_id = string.format('mcpr_%s_%d_%d', string.gsub(job_id, '^job_', ''), call.turn, call.place)
  if call.asked > 1 then call.approval_id = call.approval_id .. '_' .. call.asked end
  call.question_of, call.approver, call.lease_until_ms, call.owner = state, '', 0, ''
  local member = approval_member(job_id, calling, call.place)
  redis.call('ZADD', APPROVALS_DUE, call.expires_ms, member)
  redis.call('ZADD', approvals_of(job), call.expires_ms, member)
  redis.call('ZADD', APPROVALS_UNTOLD, now, 'requested ' .. member .. ' ' .. call.approval_id)
end

-- Ask anew for what was asked when a job ended that now goes on, and about calls that no one could be asked about.
local function ask_again(key, job, job_id, calling, now)
  for i, state in ipairs(calling.states) do
    if WAITING[state] or (state == 'unknown' and calling.ask_ms > 0) then
      local call = read_call(key, calling.turn, i - 1)
      call.ended_ms = 0
      if state == 'unknown' then call.output = '' end
      ask(job, job_id, calling, call, state == 'unknown' and 'in_doubt' or state, now)
      put_call(key, calling, call)
    end
  end
  put_calling(key, calling)
end

-- Put the event of a call into its queues, or note that it is unpublished, due in `note_ms`. With `is_there_already`, one that is claimed is not
-- delivered once more.
local function queue_call(job, job_id, calling, place, publication, now, note_ms, is_there_already)
  if publication.is_noted then redis.call('ZADD', UNPUBLISHED, now + note_ms, job_id) end
  local member = call_member(job_id, calling, place)
  for _, prefix in ipairs(publication.queues) do enqueue(prefix, job.lane, member, publication.event, job.tenant, is_there_already, now) end
  calling.queues[tostring(place)] = publication.queues
end
-- Calls that run, or are in a queue to do so.
local function running(calling)
  local n = 0
  for i, state in ipairs(calling.states) do
    if state == 'sent' or state == 'accepted' or (state == 'pending' and calling.queues[tostring(i - 1)]) then n = n + 1 end
  end
  return n
end
-- The same, where fewer run than may; else it is kept until one of those has ended.
local function queue_or_hold(key, job, job_id, calling, place, publication, now)
  if running(calling) < calling.parallel then
    queue_call(job, job_id, calling, place, publication, now, SWEEP_AFTER_MS)
  else
    redis.call('HSET', key, held_field(calling, place), cjson.encode(publication))
  end
end
local function queue_held(key, job, job_id, calling, now)
  for i, state in ipairs(calling.states) do
    local place = i - 1
    if state == 'pending' and not calling.queues[tostring(place)] and running(calling) < calling.parallel then
      local field = held_field(calling, place)
      local held = redis.call('HGET', key, field)
      if held then
        queue_call(job, job_id, calling, place, cjson.decode(held), now, 0)
        redis.call('HDEL', key, field)
      end
    end
  end
end

-- The deadline of a job stands still while only people are awaited, and no sweep looks at it.
local function pace(key, job, job_id, calling, is_paused, now, recheck_ms)
  local deadline = tonumber(job.deadline_ms or 0)
  if is_paused and calling.paused_ms == 0 then
    calling.paused_ms = now
    redis.call('ZREM', DEADLINES, job_id)
    redis.call('ZREM', UNSTARTED, job_id)
  elseif not is_paused and calling.paused_ms > 0 then
    if deadline > 0 then
      deadline = deadline + math.max(0, now - calling.paused_ms)
      redis.call('HSET', key, 'deadline_ms', string.format('%d', deadline))
      redis.call('ZADD', DEADLINES, deadline, job_id)
      job.deadline_ms = deadline
    end
    redis.call('ZADD', UNSTARTED, now + recheck_ms, job_id)
    calling.paused_ms = 0
  end
end

-- What calls of a tool took: a hash of the newest times in milliseconds by server and tool. Servers that requests name are not counted.
local TIMES, TIMES_KEPT, MOST_TIMED = 'torpor:tools:times', 15, 2000
local HANDOVER_MS = 1000 -- between the event of the next turn and its delivery
local function timed_as(call) return call.server .. ' ' .. (call.tool or '') end
local function note_time(call, now)
  if (call.server or '') == '' or call.by_url == 1 or (call.sent_ms or 0) == 0 then return end
  local name = timed_as(call)
  local known = redis.call('HGET', TIMES, name)
  if not known and redis.call('HLEN', TIMES) >= MOST_TIMED then return end
  local times = known and cjson.decode(known) or {}
  table.insert(times, 1, math.max(0, now - call.sent_ms))
  while #times > TIMES_KEPT do table.remove(times) end
  redis.call('HSET', TIMES, name, cjson.encode(times))
end
-- The median time of a call's tool; nil where none was measured.
local function usual_ms(call)
  local known = call.by_url ~= 1 and redis.call('HGET', TIMES, timed_as(call))
  if not known then return nil end
  local times = cjson.decode(known)
  table.sort(times)
  return times[math.ceil(#times / 2)]
end
-- Expect a job back at the replica that made its turn: for twice what the slowest of its tools usually takes, and no longer than reading the
-- prompt again would cost (`most_ms`).
local function expect_back(job, calling, calls, queues, most_ms, now)
  if most_ms <= 0 or #queues == 0 then return end
  local history, hold_ms = history_of(job.history), 0
  for _, call in ipairs(calls) do
    if call.state == 'pending' then hold_ms = math.max(hold_ms, math.min(2 * (usual_ms(call) or most_ms), most_ms)) end
  end
  if hold_ms == 0 or #history == 0 then return end
  for _, prefix in ipairs(queues) do redis.call('ZREMRANGEBYSCORE', prefix .. 'expected', 0, now) end
  calling.expected = {until_ms = now + math.ceil(hold_ms), owner = history[#history].owner or '', queues = queues, told_ms = 0}
end

-- Queue the next turn: the predictor's event, in the script that ended the last call.
local function next_turn(key, stream, job, job_id, calling, publication, now, recheck_ms)
  redis.call('ZADD', UNSTARTED, now + recheck_ms, job_id)
  if publication.is_noted then redis.call('ZADD', UNPUBLISHED, now + SWEEP_AFTER_MS, job_id) end
  redis.call('HSET', key, 'state', 'queued', 'step', '', 'turn_begin', job.token_count)
  if calling.expected then set_expected(calling, job_id, math.min(calling.expected.until_ms, now + HANDOVER_MS)) end
  redis.call('HDEL', key, 'calling', 'candidate', 'candidate_state', 'withheld')
  if #publication.queues > 0 then redis.call('HSET', key, 'queues', cjson.encode(publication.queues)) end
  local member = event_identity(job.source, job.event_id, job.tenant)
  for _, prefix in ipairs(publication.queues) do enqueue(prefix, job.lane, member, publication.event, job.tenant, false, now) end
  watch_start(job_id, job.fallback, now)
  redis.call('XADD', stream, '*', 'kind', 'state', 'state', 'queued', 'attempt', job.attempt, 'at_ms', now)
end

-- The newest node of a stream is made with room for 4 KiB; a copy has no room. For a job that may wait for days, which has few entries.
local function pack(stream)
  if redis.call('XLEN', stream) < 100 and redis.call('COPY', stream, stream .. ':packed', 'REPLACE') == 1 then
    redis.call('RENAME', stream .. ':packed', stream)
  end
end

-- What follows when calls have changed, and writes `calling`. Gives 'ok', 'next' (the next turn is queued) or 'ended' (the job, with its turn).
local function go_on(key, stream, job, calling, publication, now, recheck_ms, retention_s)
  local job_id, open, people = string.match(key, '{(.*)}'), 0, 0
  for _, state in ipairs(calling.states) do
    if not FINAL[state] then open = open + 1 end
    if WAITING[state] then people = people + 1 end
  end
  local does_end = calling.ends == 1 and open == people
  local was_paused, is_paused = calling.paused_ms > 0, open > 0 and open == people and not does_end
  pace(key, job, job_id, calling, is_paused, now, recheck_ms)
  if does_end then
    job.calling = cjson.encode(calling)
    end_judged(key, job, now, retention_s, '', {})
    return 'ended'
  end
  if open == 0 then
    next_turn(key, stream, job, job_id, calling, publication, now, recheck_ms)
    return 'next'
  end
  queue_held(key, job, job_id, calling, now)
  local until_ms = calling.expected and calling.expected.until_ms or 0
  set_expected(calling, job_id, open > people and until_ms > now and until_ms or 0)
  put_calling(key, calling)
  if is_paused and not was_paused then pack(stream) end
  return 'ok'
end

-- Note a result that came too late, once; it is never used.
local function note_late(key, turn, place, send, state, output)
  local noted = cjson.decode(redis.call('HGET', key, 'late_results') or '[]')
  local late = {turn = tonumber(turn), place = tonumber(place), send = tonumber(send), state = state, output = cut(output, NOTED_BYTES)}
  for _, each in ipairs(noted) do
    if each.turn == late.turn and each.place == late.place and each.send == late.send and each.state == state
      and each.output == late.output then return end
  end
  if #noted >= MOST_NOTED then return end
  late.at_ms = now_ms()
  noted[#noted + 1] = late
  redis.call('HSET', key, 'late_results', cjson.encode(noted))
end
