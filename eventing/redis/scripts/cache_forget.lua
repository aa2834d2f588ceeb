-- Forget one kept answer of a tenant. The job that gave it stays.
-- USES _lib
-- KEYS  1 entry
-- ARGV  1 the tenant's part of keys, 2 name of the entry
-- gives 1 | 0 (there is none)
local source = redis.call('HGET', KEYS[1], 'job')
if source and string.sub(ARGV[2], 1, 9) == 'semantic_' then
  return forget_semantic(ARGV[1], source, redis.call('HGET', 'torpor:{' .. source .. '}', 'model'), true)
end
local is_gone = redis.call('DEL', KEYS[1])
if source then
  local model = redis.call('HGET', 'torpor:{' .. source .. '}', 'model')
  if model then redis.call('ZREM', cache_index(ARGV[1], model), ARGV[2]) end
end
return is_gone
