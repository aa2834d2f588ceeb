-- Begin a try to index a file, unless it was removed, added again, or has ended.
-- KEYS  1 file hash
-- ARGV  1 generation, 2 what is added to the number of tries: 1, or -1 for a try that does not count
-- gives the number of the try | 0
local known = redis.call('HMGET', KEYS[1], 'generation', 'status')
if known[1] ~= ARGV[1] or known[2] ~= 'in_progress' then return 0 end
redis.call('HDEL', KEYS[1], 'stale') -- the settings are read after this
return redis.call('HINCRBY', KEYS[1], 'attempts', ARGV[2])
