-- End the indexing of a file, once.
-- USES _clock
-- KEYS  1 store hash, 2 file hash, 3 notes of files to be indexed or removed
-- ARGV  1 generation, '' for any, 2 status, 3 error (JSON), '' for none, 4 usage_bytes, 5 note, 6 prefix of batches' keys, 7 chunks
-- gives 1 | 0 (it was removed, added again, or has ended)
local known = redis.call('HMGET', KEYS[2], 'generation', 'status', 'batches')
if known[2] ~= 'in_progress' or (ARGV[1] ~= '' and known[1] ~= ARGV[1]) then return 0 end
redis.call('HSET', KEYS[2], 'status', ARGV[2], 'usage_bytes', ARGV[4], 'chunks', ARGV[7])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], 'error', ARGV[3]) end
redis.call('HINCRBY', KEYS[1], 'in_progress', -1)
redis.call('HINCRBY', KEYS[1], ARGV[2], 1)
redis.call('HINCRBY', KEYS[1], 'usage_bytes', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('HSET', KEYS[1], 'active_ms', now_ms())
for batch in string.gmatch(known[3] or '', '%S+') do
  local key = ARGV[6] .. batch .. '}'
  if redis.call('EXISTS', key) == 1 then
    redis.call('HINCRBY', key, 'in_progress', -1)
    redis.call('HINCRBY', key, ARGV[2], 1)
  end
end
-- The chunks of a cancelled file are still to go, and those of one whose settings changed meanwhile to follow.
if ARGV[2] ~= 'cancelled' and redis.call('HEXISTS', KEYS[2], 'stale') == 0 then redis.call('ZREM', KEYS[3], ARGV[5]) end
return 1
