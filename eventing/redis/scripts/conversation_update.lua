-- Set one field of a conversation that is still there.
-- USES _conversation
-- KEYS  1 conversation hash
-- ARGV  1 field, 2 value
-- gives 1 | 0 (it is gone)
if redis.call('HEXISTS', KEYS[1], 'tenant') == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
keep_conversation(KEYS[1])
return 1
