-- Delete one item of a conversation, with its vector. A summary that covers it goes too: it may repeat the item.
-- USES _conversation
-- KEYS  1 conversation hash, 2 items, 3 their order, 4 vectors
-- ARGV  1 item id
-- gives 1 | 0 (there is no such item)
local size, place = redis.call('HSTRLEN', KEYS[2], ARGV[1]), tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]))
if not place then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HINCRBY', KEYS[1], 'bytes', -size)
if place <= tonumber(redis.call('HGET', KEYS[1], 'summarised_seq') or 0) then
  redis.call('HDEL', KEYS[1], 'summary', 'summarised_seq')
end
keep_conversation(KEYS[1])
return 1
