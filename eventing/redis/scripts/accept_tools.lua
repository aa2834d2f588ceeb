-- Pin the list of a tool server that was read last for a tenant, if it is the one that a person has seen.
-- USES _clock
-- KEYS  1 the tenant's lists, as in see_tools.lua
-- ARGV  1 label, 2 digest of the list, 3 who accepts it
-- gives 'ok' | 'other' | 'missing'
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if not raw then return 'missing' end
local known = cjson.decode(raw)
if known.digest ~= ARGV[2] then return 'other' end
if known.pinned ~= ARGV[2] then
  known.pinned, known.pinned_ms, known.by = ARGV[2], now_ms(), ARGV[3]
  redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(known), ARGV[1] .. ':pinned', redis.call('HGET', KEYS[1], ARGV[1] .. ':tools') or '[]')
end
return 'ok'
