-- Ask for a batch to be cancelled: the mark, and an index entry for one without a runner.
-- KEYS  1 batch hash, 2 active batches
-- ARGV  1 batch id
-- gives 1 | 0 (there is no such batch)
if redis.call('HEXISTS', KEYS[1], 'record') == 0 then return 0 end
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'cancel', 1)
redis.call('ZADD', KEYS[2], 'NX', t[1] * 1000 + math.floor(t[2] / 1000), ARGV[1])
return 1
