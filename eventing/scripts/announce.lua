-- Note that the result event of an ended job has arrived.
-- KEYS  1 job hash
-- gives 1 | 0 (there is no such job, or it runs again)
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'queued' or state == 'in_progress' then return 0 end
redis.call('HSET', KEYS[1], 'announced', 1)
return 1
