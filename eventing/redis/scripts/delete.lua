-- Forget a job that has ended. One that was redriven meanwhile is not touched.
-- KEYS  1 job hash, 2 token stream
-- gives 1 | 0 (there is none, or it has not ended)
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'queued' or state == 'in_progress' then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
return 1
