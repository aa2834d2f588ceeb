-- Delete chunks of an index in vector sets, with their vectors and words. An index that goes (`drop`) loses its vectors together, at its `end`,
-- when it has no chunk left: taken out one by one, each would have the graph mended for nothing.
-- USES _vector_set
-- KEYS  1 index hash, 2 vector set
-- ARGV  1 prefix of the chunks' keys, 2 prefix of the words' keys, 3 '' | 'drop' | 'end' | 'force' (at whatever count), 4.. ids
-- gives the number of deleted chunks
local head, vectors = KEYS[1], KEYS[2]
local count = 0
for i = 4, #ARGV do
  local id, chunk = ARGV[i], ARGV[1] .. ARGV[i]
  if redis.call('EXISTS', chunk) == 1 then
    forget_words(head, chunk, ARGV[2], id)
    redis.call('DEL', chunk)
    if ARGV[3] == '' then redis.call('VREM', vectors, id) end
    count = count + 1
  end
end
if count > 0 then
  redis.call('HINCRBY', head, 'chunks', -count)
  redis.call('HINCRBY', head, 'version', 1)
end
local is_empty = tonumber(redis.call('HGET', head, 'chunks') or 0) == 0
if ARGV[3] == 'force' or (ARGV[3] == 'end' and is_empty) then redis.call('UNLINK', head, vectors) end
return count
