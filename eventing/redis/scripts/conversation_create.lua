-- Record a conversation with its first items, once.
-- USES _clock _conversation
-- KEYS  1 conversation hash, 2 items, 3 their order
-- ARGV  1 tenant, 2 retention_s, 3 metadata (JSON), 4.. item id, item (JSON) in turn
-- gives created_ms
local made = redis.call('HGET', KEYS[1], 'created_ms')
if made then return tonumber(made) end
local now = now_ms()
redis.call('HSET', KEYS[1], 'tenant', ARGV[1], 'keep_s', ARGV[2], 'metadata', ARGV[3], 'created_ms', now, 'seq', 0, 'bytes', 0)
append_items(KEYS[1], {unpack(ARGV, 4)})
return now
