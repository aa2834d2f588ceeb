-- Delete a vector store, or only empty one that has expired, and note that its chunks are to go.
-- USES _clock
-- KEYS  1 store hash, 2 list of the tenant's stores, 3 list of its files, 4 notes of files to be indexed or removed
-- ARGV  1 store id, 2 prefix of its files' keys, 3 note, 4 'empty' to keep the record, 5 prefix of files' keys
-- gives 1 | 0 (there is no such store)
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('ZADD', KEYS[4], now_ms() + SWEEP_AFTER_MS, ARGV[3])
for _, file in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  redis.call('DEL', ARGV[2] .. file)
  redis.call('SREM', ARGV[5] .. file .. '}:stores', ARGV[1])
end
redis.call('DEL', KEYS[3])
if ARGV[4] == 'empty' then
  redis.call('HDEL', KEYS[1], 'in_progress', 'completed', 'failed', 'cancelled', 'usage_bytes')
  redis.call('HINCRBY', KEYS[1], 'version', 1)
else
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return 1
