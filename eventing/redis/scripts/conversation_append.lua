-- Put items at the end of a conversation.
-- USES _conversation
-- KEYS  1 conversation hash, 2 items, 3 their order
-- ARGV  1 most items, 2 most bytes of all items, 3.. item id, item (JSON) in turn
-- gives 'ok' | 'full' (it has as much already: nothing is added) | 'missing'
local held = tonumber(redis.call('HGET', KEYS[1], 'bytes'))
if not held then return 'missing' end
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[1]) or held >= tonumber(ARGV[2]) then return 'full' end
append_items(KEYS[1], {unpack(ARGV, 3)})
return 'ok'
