-- Add a file to a vector store, and note that it is to be indexed. One that is there with the same settings, and has not failed, stays
-- as it is; any other is indexed again.
-- USES _clock
-- KEYS  1 store hash, 2 list of its files, 3 file hash, 4 notes of files to be indexed or removed, 5 batch hash (or the store's again)
-- ARGV  1 file id, 2 settings (JSON), 3 generation, 4 note, 5 most files, 6 prefix of batches' and files' keys, 7 batch id, '' for none,
--       8 list of the batch's files, 9 store id
-- gives 'added' | 'known' | 'gone' (there is no such store) | 'full'
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
local known = redis.call('HMGET', KEYS[3], 'status', 'settings', 'batches', 'usage_bytes')
if not known[1] and redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[5]) then return 'full' end
local now, batches = now_ms(), known[3] or ''
redis.call('HSET', KEYS[1], 'active_ms', now)
if ARGV[7] ~= '' then
  if redis.call('ZADD', ARGV[8], 'NX', now, ARGV[1]) == 0 then return 'known' end
  redis.call('EXPIRE', ARGV[8], redis.call('TTL', KEYS[5]))
end
if known[1] and known[2] == ARGV[2] and (known[1] == 'in_progress' or known[1] == 'completed') then
  if ARGV[7] ~= '' then
    redis.call('HINCRBY', KEYS[5], known[1], 1)
    redis.call('HSET', KEYS[3], 'batches', batches .. ' ' .. ARGV[7])
  end
  return 'known'
end
redis.call('ZADD', KEYS[4], now + SWEEP_AFTER_MS, ARGV[4])
if known[1] then
  redis.call('HINCRBY', KEYS[1], known[1], -1)
  redis.call('HINCRBY', KEYS[1], 'usage_bytes', -(tonumber(known[4]) or 0))
  for batch in string.gmatch(batches, '%S+') do
    if redis.call('EXISTS', ARGV[6] .. batch .. '}') == 1 then
      redis.call('HINCRBY', ARGV[6] .. batch .. '}', known[1], -1)
      redis.call('HINCRBY', ARGV[6] .. batch .. '}', 'in_progress', 1)
    end
  end
end
if ARGV[7] ~= '' then
  redis.call('HINCRBY', KEYS[5], 'in_progress', 1)
  batches = batches .. ' ' .. ARGV[7]
end
redis.call('HSET', KEYS[3], 'status', 'in_progress', 'settings', ARGV[2], 'generation', ARGV[3], 'batches', batches,
  'attempts', 0, 'usage_bytes', 0)
redis.call('HSETNX', KEYS[3], 'created_ms', now)
redis.call('HDEL', KEYS[3], 'error')
redis.call('ZADD', KEYS[2], 'NX', now, ARGV[1])
redis.call('SADD', ARGV[6] .. ARGV[1] .. '}:stores', ARGV[9])
redis.call('HINCRBY', KEYS[1], 'in_progress', 1)
return 'added'
