-- Claim a batch that was taken from the index, for a new epoch. One without a record leaves the index.
-- KEYS  1 batch hash, 2 active batches
-- ARGV  1 batch id, 2 by how much the epoch grows
-- gives the epoch to write under | 0 (there is no such batch)
if redis.call('HEXISTS', KEYS[1], 'record') == 1 then return redis.call('HINCRBY', KEYS[1], 'epoch', ARGV[2]) end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1])
return 0
