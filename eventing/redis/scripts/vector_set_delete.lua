-- Delete chunks of an index in vector sets, with their vectors and words. Once `all` are gone, the index goes too.
-- USES _vector_set
-- KEYS  1 index hash, 2 vector set
-- ARGV  1 prefix of the chunks' keys, 2 prefix of the words' keys, 3 'all' when the index goes once it is empty, 4.. ids
-- gives the number of deleted chunks
local head, vectors = KEYS[1], KEYS[2]
local count = 0
for i = 4, #ARGV do
  local id, chunk = ARGV[i], ARGV[1] .. ARGV[i]
  if redis.call('EXISTS', chunk) == 1 then
    forget_words(head, chunk, ARGV[2], id)
    redis.call('DEL', chunk)
    redis.call('VREM', vectors, id)
    count = count + 1
  end
end
if ARGV[3] == 'all' and redis.call('EXISTS', vectors) == 0 then
  redis.call('DEL', head)
elseif count > 0 then
  redis.call('HINCRBY', head, 'version', 1)
end
return count
