-- Change a vector store that exists: its settings, or only when it was last used.
-- USES _clock
-- KEYS  1 store hash, 2 notes of files to be indexed or removed
-- ARGV  1 settings (JSON), '' to leave them, 2 its note, 3 how long it is kept unused, in milliseconds (0 for ever)
-- gives 1 | 0 (there is no such store)
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local now = now_ms()
redis.call('HSET', KEYS[1], 'active_ms', now)
if ARGV[1] ~= '' then redis.call('HSET', KEYS[1], 'settings', ARGV[1]) end
-- NX: what is due earlier looks again.
if ARGV[3] ~= '0' then redis.call('ZADD', KEYS[2], 'NX', now + ARGV[3], ARGV[2]) end
return 1
