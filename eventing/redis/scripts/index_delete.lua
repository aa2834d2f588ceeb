-- Delete chunks of a vector index, and announce it. Once `all` are gone, the index goes too.
-- KEYS  1 index hash, 2 set of its chunks, 3 stream of its changes
-- ARGV  1 prefix of the chunks' keys, 2 changes kept, 3 'all' when the index goes once it is empty, 4.. ids
-- gives the number of deleted chunks
local ids = {}
for i = 4, #ARGV do
  if redis.call('SREM', KEYS[2], ARGV[i]) == 1 then
    redis.call('DEL', ARGV[1] .. ARGV[i])
    ids[#ids + 1] = ARGV[i]
  end
end
if ARGV[3] == 'all' and redis.call('SCARD', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[1], KEYS[3])
elseif #ids > 0 then
  local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[2], '*', 'v', version, 'del', cjson.encode(ids))
end
return #ids
