-- Take what a person decided about a call, once: a second decision gets the first. One that comes too late is denied.
-- USES _clock _job _calls _tools
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 turn, 2 place, 3 approval id, 4 state (pending, denied, returned, unknown), 5 text, 6 approver, 7 recheck_ms, 8 retention_s of a job
--       that ends, 9.. the call's event, then the predictor's: record, '1' to note that it is unpublished, number of queues, prefixes of their keys
-- gives {'ok' | 'next' | 'ended' | 'done' (decided before) | 'terminal' | 'missing', the call}
local key, stream, job = KEYS[1], KEYS[2], read_job(KEYS[1])
if not job.state then return {'missing', ''} end
local field = call_field(tonumber(ARGV[1]), tonumber(ARGV[2]))
local text = redis.call('HGET', key, field)
if not text then return {'missing', ''} end
if job.state ~= 'queued' and job.state ~= 'in_progress' then return {'terminal', text} end
local call, calling = cjson.decode(text), job.calling and cjson.decode(job.calling)
if (call.asked or 0) == 0 then return {'missing', ''} end
if not calling or calling.turn ~= call.turn or not WAITING[call.state] or call.approval_id ~= ARGV[3] then return {'done', text} end
local now, job_id, state, before = now_ms(), string.match(key, '{(.*)}'), ARGV[4], call.state
local take = reader(9)
local event, following = read_publication(take), read_publication(take)
call.approver = ARGV[6]
if now >= (call.expires_ms or 0) then
  state, call.approver, call.reason = before == 'in_doubt' and 'unknown' or 'denied', '', 'no answer'
  call.output = before == 'in_doubt' and TOLD.unknown or TOLD.unanswered
elseif state == 'pending' then
  if before == 'awaiting_input' then call.answer = ARGV[5] end
  call.reason, call.queued_ms = '', now -- it was not waited for by its server meanwhile
else
  call.output, call.reason = ARGV[5], state == 'denied' and 'denied' or call.reason
  if call.output == '' then call.output = TOLD[state] or '' end
end
if state == 'denied' then call.is_error = 1 end
if FINAL[state] then call.ended_ms = now end
drop_approval(job, job_id, calling, call.place)
call.state, call.expires_ms, call.handle = state, 0, ''
calling.queues[tostring(call.place)] = nil
put_call(key, calling, call)
tell(stream, call, now)
redis.call('ZADD', APPROVALS_UNTOLD, now, 'answered ' .. approval_member(job_id, calling, call.place) .. ' ' .. call.approval_id)
if state == 'pending' then queue_or_hold(key, job, job_id, calling, call.place, event, now) end
local follows = go_on(key, stream, job, calling, following, now, ARGV[7], ARGV[8])
return {follows, call_json(call)}
