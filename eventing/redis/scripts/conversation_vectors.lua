-- Keep vectors beside the items that they are of. An item that is gone gets none.
-- USES _conversation
-- KEYS  1 conversation hash, 2 items, 3 their order, 4 vectors
-- ARGV  item id, vector in turn
-- gives how many were kept
if redis.call('HEXISTS', KEYS[1], 'tenant') == 0 then return 0 end
local kept = 0
for i = 1, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1 then
    redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1])
    kept = kept + 1
  end
end
if kept > 0 then keep_conversation(KEYS[1]) end
return kept
