-- Lengthen the lease of a call that is still its holder's.
-- USES _clock _job _end _tools
-- KEYS  1 job hash
-- ARGV  1 turn, 2 place, 3 lease number, 4 lease_ms
-- gives 1 | 0 (it is not, or the job has ended, or is late: stop)
local job = read_job(KEYS[1])
local calling = job.calling and cjson.decode(job.calling)
if job.state ~= 'in_progress' or not calling or calling.turn ~= tonumber(ARGV[1]) then return 0 end
local state, now, deadline = calling.states[ARGV[2] + 1], now_ms(), deadline_of(job)
if (state ~= 'sent' and state ~= 'accepted') or (deadline > 0 and now >= deadline) then return 0 end
local call = read_call(KEYS[1], calling.turn, ARGV[2])
if call.lease_number ~= tonumber(ARGV[3]) then return 0 end
call.lease_until_ms = now + ARGV[4]
put_call(KEYS[1], calling, call)
return 1
