-- Lengthen a lease that is still ours. Store time decides; a lease that ran out but was not taken over is still ours.
-- USES _clock _queue
-- KEYS  1 job hash
-- ARGV  1 attempt, 2 lease id, 3 lease_ms (0: only look)
-- gives 'ok' | 'expired' (past the job's deadline) | 'fenced' | 'terminal' | 'missing'
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'deadline_ms', 'lease_id', 'fallback')
if not job[1] then return 'missing' end
if job[2] ~= ARGV[1] or job[4] ~= ARGV[2] then return 'fenced' end
if job[1] == 'queued' then return 'fenced' end
if job[1] ~= 'in_progress' then return 'terminal' end
local now = now_ms()
local deadline = tonumber(job[3] or 0)
if deadline > 0 and now >= deadline then return 'expired' end
if ARGV[3] ~= '0' then
  redis.call('HSET', KEYS[1], 'lease_until_ms', now + tonumber(ARGV[3]))
  note_began(job[5], now)
end
return 'ok'
