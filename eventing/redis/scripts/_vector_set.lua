-- What the scripts of an index in vector sets share.

-- A chunk's words leave the lists of the index: of a chunk that goes, or is put again.
local function forget_words(head, chunk, word_prefix, id)
  local kept = redis.call('HGET', chunk, 'words')
  if not kept then return end
  local length = 0
  for word, count in pairs(cjson.decode(kept)) do
    redis.call('ZREM', word_prefix .. word, id)
    length = length + count
  end
  redis.call('HINCRBY', head, 'length', -length)
end

