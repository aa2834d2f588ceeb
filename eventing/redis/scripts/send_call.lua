-- Mark a call as sent and take its lease, before it is dialled, or say why not. A call that was sent and whose lease has lapsed is in doubt:
-- it is sent again where its effect class allows; else a person is asked, or the caller is told to give it up.
-- USES _clock _job _calls _end _tools
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 turn, 2 place, 3 owner, 4 lease_ms, 5 hash of the token of a later result, '' for none, 6 retention_s of a failed job,
--       7 retention_s of another, 8 recheck_ms, 9 a random mark by which the sender knows this send,
--       10 idempotency key of the call that was delivered, '' for not given: one of an earlier epoch is none of this job's calls any more
-- gives {'sent' | 'poll', lease number} | {'in_doubt', lease number (0: a person was asked)} | {'held', lease_left_ms}
--       | {'waiting' | 'done' | 'terminal' | 'expired' | 'missing', 0}
local key, stream, job = KEYS[1], KEYS[2], read_job(KEYS[1])
if not job.state then return {'missing', 0} end
if job.state ~= 'queued' and job.state ~= 'in_progress' then return {'terminal', 0} end
local calling = job.calling and cjson.decode(job.calling)
if not calling or calling.turn ~= tonumber(ARGV[1]) then return {'done', 0} end
if ARGV[10] ~= '' and ARGV[10] ~= call_key(string.match(key, '{(.*)}'), calling, ARGV[2]) then return {'done', 0} end
local state = calling.states[ARGV[2] + 1]
if not state or FINAL[state] then return {'done', 0} end
if WAITING[state] then return {'waiting', 0} end
local now, deadline = now_ms(), deadline_of(job)
if deadline > 0 and now >= deadline then
  end_late(key, job, now, ARGV[7], ARGV[6], '')
  return {'expired', 0}
end
local call, lease_ms = read_call(key, calling.turn, ARGV[2]), tonumber(ARGV[4])
local left = math.min((call.lease_until_ms or 0) - now, lease_ms) -- a store's clock can go back
if state ~= 'pending' and left > 0 then return {'held', left} end
local sent = 0
for _, each in ipairs(calling.states) do if each == 'sent' then sent = sent + 1 end end
if state == 'pending' and sent >= calling.parallel then return {'held', 1000} end

local answer, sends = 'sent', call.sends or 0
if state == 'accepted' or (call.handle or '') ~= '' then
  answer = 'poll'
elseif state == 'sent' and not may_be_sent_again(call) then
  call.reason = call.effect == 'once' and 'its lease was lost after it was sent' or string.format('every send was lost (%d)', sends)
  if call.effect == 'once' and calling.ask_ms > 0 then
    ask(job, string.match(key, '{(.*)}'), calling, call, 'in_doubt', now)
    put_call(key, calling, call)
    tell(stream, call, now)
    go_on(key, stream, job, calling, nil, now, ARGV[8], ARGV[7])
    return {'in_doubt', 0}
  end
  answer = 'in_doubt'
end
call.mark = ARGV[9]
call.owner, call.lease_until_ms = ARGV[3], now + lease_ms
call.lease_number = (call.lease_number or calling.epoch * EPOCH) + 1
if answer == 'sent' then
  call.state, call.sends, call.sent_ms, call.reason = 'sent', sends + 1, now, ''
  call.progress, call.progress_ms = '', 0
  if ARGV[5] ~= '' then call.token_hash = ARGV[5] end
end
put_call(key, calling, call)
put_calling(key, calling)
if answer == 'sent' then tell(stream, call, now) end
return {answer, call.lease_number}
