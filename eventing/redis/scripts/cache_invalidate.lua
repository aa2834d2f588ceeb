-- Void every kept answer of a tenant, or of some of its models, by raising a counter that each entry was made under.
-- USES _clock _cache
-- KEYS  1 counters
-- ARGV  1 the tenant's part of keys, 2 '1' to count only, 3 '1' for all models, 4.. models
-- gives how many answers were, or would be, voided
local now, count = now_ms(), 0
for _, model in ipairs({unpack(ARGV, 4)}) do
  local index = cache_index(ARGV[1], model)
  count = count + redis.call('ZCOUNT', index, now, '+inf')
  if ARGV[2] ~= '1' then
    redis.call('DEL', index)
    if ARGV[3] ~= '1' then redis.call('HINCRBY', KEYS[1], model, 1) end
  end
end
if ARGV[2] ~= '1' and ARGV[3] == '1' then redis.call('HINCRBY', KEYS[1], '*', 1) end
return count
