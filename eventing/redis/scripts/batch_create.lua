-- Record a batch and have it run, once.
-- KEYS  1 batch hash, 2 active batches, 3 the tenant's list
-- ARGV  1 batch id, 2 record (JSON), 3 created_s, 4 retention_s of a record, 5 retention_s of its place in the list
-- gives the record of that id, which may have been there before
local known = redis.call('HGET', KEYS[1], 'record')
if known then return known end
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'record', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], 'NX', t[1] * 1000 + math.floor(t[2] / 1000), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[3] - ARGV[5])
redis.call('ZADD', KEYS[3], 'NX', ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[5])
return ARGV[2]
