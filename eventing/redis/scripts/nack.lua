-- Give back an event that its subscriber did not accept: untried, at the head of its lane, under a new ticket, so that a consumer that waits for
-- work hears of it at once. How often and since when that happens is kept until the event is settled.
-- KEYS  1 tickets, 2 events, 3 held, 4 retry, 5 tries, 6 ready set of its lane, 7 fair-share hash of its lane
-- ARGV  1 group, 2 ticket, 3 of a consumer beside others: its name as a holder of prefixes, which has no room
-- gives 1, or 0 when the ticket stands for nothing any more
local member = redis.call('HGET', KEYS[3], ARGV[2])
if not member then return 0 end
if ARGV[3] then redis.call('ZREM', (string.gsub(KEYS[5], 'tries$', 'room')), ARGV[3]) end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
if redis.call('HEXISTS', KEYS[2], member) == 0 then return 0 end
local t = redis.call('TIME')
if redis.call('HINCRBY', KEYS[5], member, -1) <= 0 then redis.call('HDEL', KEYS[5], member) end
redis.call('HDEL', KEYS[5], '\0again:' .. member)
redis.call('HINCRBY', KEYS[5], '\0refused:' .. member, 1)
redis.call('HSETNX', KEYS[5], '\0refused_ms:' .. member, string.format('%d', t[1] * 1000 + math.floor(t[2] / 1000)))
redis.call('XADD', KEYS[1], '*', 't', '1')
-- What the lane gave last stood at its clock, and nothing that waits stands before it.
redis.call('ZADD', KEYS[6], redis.call('HGET', KEYS[7], 'clock') or 0, member)
return 1
