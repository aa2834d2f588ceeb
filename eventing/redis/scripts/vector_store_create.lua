-- Record a vector store, and note when it is first to be looked at whether it has expired.
-- USES _clock
-- KEYS  1 store hash, 2 list of the tenant's stores, 3 notes of files to be indexed or removed
-- ARGV  1 store id, 2 tenant, 3 settings (JSON), 4 its note, 5 how long it is kept unused, in milliseconds (0 for ever)
-- gives 1 | 0 (it was there)
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local now = now_ms()
if ARGV[5] ~= '0' then redis.call('ZADD', KEYS[3], now + ARGV[5], ARGV[4]) end
redis.call('HSET', KEYS[1], 'tenant', ARGV[2], 'settings', ARGV[3], 'created_ms', now, 'active_ms', now, 'version', 1)
redis.call('ZADD', KEYS[2], now, ARGV[1])
return 1
