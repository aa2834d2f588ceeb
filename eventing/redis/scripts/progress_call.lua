-- Note how far a running call is, unless that was noted a moment ago: at most once a second, and more rarely the longer the call runs.
-- USES _clock _job _tools
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 turn, 2 place, 3 lease number, 4 hash of the call's token, '' for none, 5 what it says (JSON)
-- gives 'ok' | 'soon' (dropped) | 'late' (the call does not run any more, or not under this lease or token) | 'missing'
local key, stream, job = KEYS[1], KEYS[2], read_job(KEYS[1])
local call = job.state and read_call(key, ARGV[1], ARGV[2])
if not call then return 'missing' end
local calling = job.calling and cjson.decode(job.calling)
if job.state ~= 'in_progress' or not calling or calling.turn ~= call.turn then return 'late' end
if call.state ~= 'sent' and call.state ~= 'accepted' then return 'late' end
if not (call.lease_number == tonumber(ARGV[3]) or (ARGV[4] ~= '' and call.token_hash == ARGV[4])) then return 'late' end
local now, noted = now_ms(), call.progress_ms or 0
local every = math.max(PROGRESS_EVERY_MS, (now - (call.sent_ms or now)) / PROGRESS_SHARE)
if now >= noted and now - noted < every then return 'soon' end
call.progress, call.progress_ms = ARGV[5], now
put_call(key, calling, call)
tell(stream, call, now, call.progress)
return 'ok'
