-- Forget a job that has ended. One that was redriven meanwhile is not touched. What is left is a tombstone, which every script that
-- records jobs knows: an event of the job that comes later makes no new one.
-- KEYS  1 job hash, 2 token stream, 3 list of the tenant's jobs, 4 list of its dead letters
-- ARGV  1 job id, 2 retention_s of the tombstone
-- gives 1 | 0 (there is none, or it has not ended)
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'queued' or state == 'in_progress' then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'deleted', 1)
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
return 1
