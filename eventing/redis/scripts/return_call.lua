-- Store how a send of a call ended, by its newest lease or by the token that it was sent with. Where it was the last open call of its turn, the
-- next turn is queued in the same step, or the job ends with the turn.
-- USES _clock _job _calls _tools
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 turn, 2 place, 3 lease number, 4 state, 5 hash of a token, '' for none, 6 recheck_ms, 7 retention_s of a job that ends,
--       8 how it ended (JSON: output, is_error, handle, again_ms (after which a sweep queues an accepted call), object_ref, output_bytes,
--       reason, question), 9.. the predictor's event: record, '1' to note that it is unpublished, number of queues, prefixes of their keys
-- gives 'ok' | 'again' (it is to be sent again) | 'next' | 'ended' | 'late' (noted, not used) | 'done' (the same was stored before)
--       | 'terminal' (noted) | 'missing'
local key, stream, job = KEYS[1], KEYS[2], read_job(KEYS[1])
if not job.state then return 'missing' end
local turn, place, number, state, told = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], cjson.decode(ARGV[8])
local call = read_call(key, turn, place)
if not call then return 'missing' end
local is_result, is_held, again_ms = state == 'returned', call.lease_number == number, told.again_ms or 0
told.again_ms = nil
if job.state ~= 'queued' and job.state ~= 'in_progress' then
  local is_same = FINAL[call.state] and is_held and call.state == state and call.output == told.output
  if not is_same then note_late(key, turn, place, number, state, told.output or '') end
  return 'terminal'
end
local now, job_id, answer = now_ms(), string.match(key, '{(.*)}'), nil
if state == 'accepted' and is_held and again_ms > 0 then redis.call('ZADD', UNSTARTED, 'LT', now_ms() + again_ms, string.match(key, '{(.*)}')) end
local is_known = is_result and ARGV[5] ~= '' and call.token_hash == ARGV[5]
local calling = job.calling and cjson.decode(job.calling)
local is_open = calling and calling.turn == turn and (call.state == 'sent' or call.state == 'accepted')
if not is_open or not (is_known or is_held) or (call.state == 'accepted' and state == 'accepted' and call.handle == told.handle) then
  local is_other = is_result and (call.state ~= 'returned' or call.output ~= (told.output ~= '' and told.output or nil))
  if (is_held or is_known) and not is_other then
    if call.state == 'pending' then return 'again' end
    if call.state ~= 'sent' then return 'done' end
  end
  note_late(key, turn, place, number, state, told.output or '')
  return 'late'
end

for name, value in pairs(told) do if value ~= '' and value ~= 0 then call[name] = value end end
call.lease_until_ms, call.owner = 0, ''
if state == 'in_doubt' then
  call.refused_ms = 0
  if may_be_sent_again(call) then state, answer = 'pending', 'again'
  elseif call.effect ~= 'once' or calling.ask_ms == 0 then state = 'unknown' end
elseif state == 'pending' then
  answer, call.sends = 'again', math.max(0, (call.sends or 0) - 1)
  if (call.refused_ms or 0) == 0 then call.refused_ms = now end
elseif state == 'awaiting_input' then
  call.sends = math.max(0, (call.sends or 0) - 1)
  if calling.ask_ms == 0 then state, call.is_error, call.output = 'returned', 1, 'The tool asks its user for something, and no one can be asked.' end
end
if state == 'accepted' then
  if ARGV[5] ~= '' then call.token_hash = ARGV[5] end
elseif WAITING[state] then
  ask(job, job_id, calling, call, state, now)
elseif FINAL[state] then
  if state == 'returned' then note_time(call, now) end
  call.ended_ms = now -- the hash of its token stays: a result that comes again is known by it
  if state == 'unknown' and (call.output or '') == '' then call.output = TOLD.unknown end
elseif state == 'pending' then
  call.handle = ''
end
call.state = state
put_call(key, calling, call)
tell(stream, call, now)
local follows = go_on(key, stream, job, calling, read_publication(reader(9)), now, ARGV[6], ARGV[7])
return follows == 'ok' and answer or follows
