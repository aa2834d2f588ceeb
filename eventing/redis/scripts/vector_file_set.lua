-- Change the settings of a file in a vector store, and note that its chunks are to follow.
-- USES _clock
-- KEYS  1 store hash, 2 file hash, 3 notes of files to be indexed or removed
-- ARGV  1 settings (JSON), 2 note
-- gives 1 | 0 (there is no such file)
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('ZADD', KEYS[3], now_ms() + SWEEP_AFTER_MS, ARGV[2])
redis.call('HSET', KEYS[2], 'settings', ARGV[1], 'stale', 1)
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1
