-- Forget one kept answer of a tenant. The job that gave it stays.
-- USES _cache
-- KEYS  1 entry
-- ARGV  1 the tenant's part of keys, 2 name of the entry
-- gives 1 | 0 (there is none)
if string.sub(ARGV[2], 1, 9) == 'semantic_' then
  local source = redis.call('HGET', KEYS[1], 'job')
  if not source then return 0 end
  return forget_semantic(ARGV[1], source, redis.call('HGET', 'torpor:{' .. source .. '}', 'model'), true)
end
local model = redis.pcall('HGET', KEYS[1], 'model')
if type(model) == 'string' then redis.call('ZREM', cache_index(ARGV[1], model), ARGV[2]) end
return redis.call('DEL', KEYS[1])
