-- Whether a tenant may have one more answer made by a better model today (UTC). The same one is counted once, so the step may run again.
-- USES _clock
-- KEYS  1 prefix of the tenant's sets for a model, one a day
-- ARGV  1 what is to be made, 2 most a day
-- gives 1 | 0
local key = KEYS[1] .. ':' .. math.floor(now_ms() / 86400000)
if redis.call('SISMEMBER', key, ARGV[1]) == 1 then return 1 end
if redis.call('SCARD', key) >= tonumber(ARGV[2]) then return 0 end
redis.call('SADD', key, ARGV[1])
redis.call('EXPIRE', key, 2 * 86400)
return 1
