-- Put a new summary in place of the one that it was made of; the first one wins.
-- USES _conversation
-- KEYS  1 conversation hash
-- ARGV  1 number of the last item that the summary before covers, 0 for none, 2 that of the new one, 3 summary (JSON)
-- gives 1 | 0 (there is another summary now, or the conversation is gone)
local held = redis.call('HMGET', KEYS[1], 'tenant', 'summarised_seq')
if not held[1] or (held[2] or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'summarised_seq', ARGV[2], 'summary', ARGV[3])
keep_conversation(KEYS[1])
return 1
