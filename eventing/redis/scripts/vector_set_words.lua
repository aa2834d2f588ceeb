-- Rank the chunks of an index in vector sets by words (BM25): each word has a sorted set of its chunks, and their weighted sum is the ranking.
-- KEYS  1 vector set, 2 the ranking, for the time of this script
-- ARGV  1 prefix of the words' keys, 2 share of the words' weight that a chunk must hold, 3 first rank, 4 number of ranks,
--       5 chunks up to which no word is too common, 6.. words
-- gives id, score of each chunk, best first
local LEAST = 0.000001
local chunks = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('VCARD', KEYS[1]) or 0
local all, rare = {}, {}
for i = 6, #ARGV do
  local key = ARGV[1] .. ARGV[i]
  local held = redis.call('ZCARD', key)
  local weight = math.max(LEAST, math.log((chunks - held + 0.5) / (held + 0.5)))
  all[#all + 1] = {key, weight}
  if chunks <= tonumber(ARGV[5]) or weight > LEAST then rare[#rare + 1] = {key, weight} end
end
-- Words that stand in more than half of the chunks say nothing; a query by nothing else keeps them.
if #rare == 0 and tonumber(ARGV[2]) == 0 then rare = all end
if #rare == 0 then return {} end
local union, weights, whole = {'ZUNIONSTORE', KEYS[2], #rare}, {}, 0
for _, each in ipairs(rare) do
  union[#union + 1], weights[#weights + 1] = each[1], each[2]
  whole = whole + each[2]
end
union[#union + 1] = 'WEIGHTS'
for _, weight in ipairs(weights) do union[#union + 1] = weight end
redis.call(unpack(union))
local least = tonumber(ARGV[2]) * whole
local found = redis.call('ZRANGE', KEYS[2], '+inf', least, 'BYSCORE', 'REV', 'LIMIT', ARGV[3], ARGV[4], 'WITHSCORES')
redis.call('DEL', KEYS[2])
return found
