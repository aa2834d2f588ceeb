-- Store chunks of an index in vector sets: vector, text and words together. A chunk without a vector changes the attributes of a stored one
-- only; an unknown one is left out.
-- USES _vector_set
-- KEYS  1 index hash, 2 vector set
-- ARGV  1 prefix of the chunks' keys, 2 prefix of the words' keys, 3 model revision, 4 dimension (0: as it is),
--       5.. id, vector (float32 bytes), text, attributes (JSON), the same to filter by (JSON), words (JSON: each with its count) of each chunk
-- gives the version | {'mismatch', revision, dimension} (of the index; '' and '0' when there is none)
local head, vectors, chunk_prefix, word_prefix = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local known = redis.call('HMGET', head, 'revision', 'dim')
if known[1] ~= ARGV[3] or (ARGV[4] ~= '0' and known[2] ~= ARGV[4]) then return {'mismatch', known[1] or '', known[2] or '0'} end
local K1, B = 1.2, 0.75 -- of BM25

local function put_words(id, words)
  local length = 0
  for _, count in pairs(words) do length = length + count end
  local total = redis.call('HINCRBY', head, 'length', length)
  local shorter = 1 - B + B * length / math.max(1, total / redis.call('VCARD', vectors))
  for word, count in pairs(words) do
    redis.call('ZADD', word_prefix .. word, count * (K1 + 1) / (count + K1 * shorter), id)
  end
end

local changed = false
for i = 5, #ARGV, 6 do
  local id, chunk = ARGV[i], chunk_prefix .. ARGV[i]
  if ARGV[i + 1] ~= '' then
    if redis.call('EXISTS', chunk) == 0 then redis.call('HINCRBY', head, 'chunks', 1) end
    forget_words(head, chunk, word_prefix, id)
    redis.call('HSET', chunk, 'text', ARGV[i + 2], 'attributes', ARGV[i + 3], 'words', ARGV[i + 5])
    redis.call('VADD', vectors, 'FP32', ARGV[i + 1], id, 'NOQUANT', 'SETATTR', ARGV[i + 4])
    put_words(id, cjson.decode(ARGV[i + 5]))
    changed = true
  elseif redis.call('EXISTS', chunk) == 1 then
    redis.call('HSET', chunk, 'attributes', ARGV[i + 3])
    redis.call('VSETATTR', vectors, id, ARGV[i + 4])
    changed = true
  end
end
if not changed then return tonumber(redis.call('HGET', head, 'version')) end
return redis.call('HINCRBY', head, 'version', 1)
