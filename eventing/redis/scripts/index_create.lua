-- Make a vector index, once.
-- KEYS  1 index hash
-- ARGV  1 model revision, 2 dimension
-- gives {revision, dimension} of the index, which may have been there before
local known = redis.call('HMGET', KEYS[1], 'revision', 'dim')
if known[1] then return known end
local t = redis.call('TIME')
-- `born` tells an index from an earlier one of the same name, whose versions it counts again.
redis.call('HSET', KEYS[1], 'revision', ARGV[1], 'dim', ARGV[2], 'version', 1, 'born', t[1] .. '.' .. t[2])
return {ARGV[1], ARGV[2]}
