-- Put what a job cost in the place of what was held for it, once.
-- USES _lib _budget
-- KEYS  1.. accounts
-- ARGV  1 job id, 2 what it cost
-- gives for each account what is spent now; -1 where nothing was held
local month = month_of(math.floor(now_ms() / 86400000))
local answer = {}
for i, key in ipairs(KEYS) do
  answer[i] = -1
  if redis.call('HDEL', key, 'hold:' .. ARGV[1]) == 1 then
    spent_in(key, month)
    answer[i] = redis.call('HINCRBY', key, 'spent', ARGV[2])
  end
end
return answer
