-- Take a file out of a vector store, and note that its chunks are to go.
-- USES _clock
-- KEYS  1 store hash, 2 list of its files, 3 file hash, 4 notes of files to be indexed or removed
-- ARGV  1 file id, 2 note, 3 prefix of batches' and files' keys, 4 store id
-- gives 1 | 0 (there is no such file)
local known = redis.call('HMGET', KEYS[3], 'status', 'usage_bytes', 'batches')
if not known[1] then return 0 end
redis.call('ZADD', KEYS[4], now_ms() + SWEEP_AFTER_MS, ARGV[2])
redis.call('HINCRBY', KEYS[1], known[1], -1)
redis.call('HINCRBY', KEYS[1], 'usage_bytes', -(tonumber(known[2]) or 0))
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('HSET', KEYS[1], 'active_ms', now_ms())
if known[1] == 'in_progress' then
  for batch in string.gmatch(known[3] or '', '%S+') do
    local key = ARGV[3] .. batch .. '}'
    if redis.call('EXISTS', key) == 1 then
      redis.call('HINCRBY', key, 'in_progress', -1)
      redis.call('HINCRBY', key, 'cancelled', 1)
    end
  end
end
redis.call('DEL', KEYS[3])
redis.call('SREM', ARGV[3] .. ARGV[1] .. '}:stores', ARGV[4])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
