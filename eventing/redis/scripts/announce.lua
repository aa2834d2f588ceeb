-- Note that the result event of an ended job has arrived.
-- KEYS  1 job hash
-- gives 1 when nothing is left to announce | 0 (the job has not ended, or runs again: its end is still to come)
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 1 end
if state == 'queued' or state == 'in_progress' then return 0 end
redis.call('HSET', KEYS[1], 'announced', 1)
return 1
