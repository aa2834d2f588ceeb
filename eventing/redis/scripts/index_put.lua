-- Store chunks of a vector index, and announce them to the processes that follow it. A chunk without a vector changes the attributes of
-- a stored one only; an unknown one is left out.
-- KEYS  1 index hash, 2 set of its chunks, 3 stream of its changes
-- ARGV  1 prefix of the chunks' keys, 2 model revision, 3 dimension (0: as it is), 4 changes kept,
--       5.. id, vector, text, attributes (JSON) of each chunk
-- gives the version | {'mismatch', revision, dimension} (of the index; '' and '0' when there is none)
local known = redis.call('HMGET', KEYS[1], 'revision', 'dim')
if known[1] ~= ARGV[2] or (ARGV[3] ~= '0' and known[2] ~= ARGV[3]) then return {'mismatch', known[1] or '', known[2] or '0'} end
local ids = {}
for i = 5, #ARGV, 4 do
  local id, key = ARGV[i], ARGV[1] .. ARGV[i]
  if ARGV[i + 1] ~= '' then
    redis.call('HSET', key, 'vector', ARGV[i + 1], 'text', ARGV[i + 2], 'attributes', ARGV[i + 3])
    redis.call('SADD', KEYS[2], id)
    ids[#ids + 1] = id
  elseif redis.call('SISMEMBER', KEYS[2], id) == 1 then
    redis.call('HSET', key, 'attributes', ARGV[i + 3])
    ids[#ids + 1] = id
  end
end
if #ids == 0 then return tonumber(redis.call('HGET', KEYS[1], 'version')) end
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'v', version, 'put', cjson.encode(ids))
return version
