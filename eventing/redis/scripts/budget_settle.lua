-- Put what a job cost in the place of what was held for it, once; or, with a new id, hold it under that.
-- USES _lib _budget
-- KEYS  1.. accounts
-- ARGV  1 job id, 2 what it cost, 3 its new id ('' for none: it has ended)
-- gives for each account what is spent now; -1 where nothing was held
local month = month_of(math.floor(now_ms() / 86400000))
local answer = {}
for i, key in ipairs(KEYS) do
  local row = redis.call('HGET', key, 'hold:' .. ARGV[1])
  answer[i] = -1
  if row then
    redis.call('HDEL', key, 'hold:' .. ARGV[1])
    if ARGV[3] ~= '' then redis.call('HSETNX', key, 'hold:' .. ARGV[3], row)
    else
      spent_in(key, month)
      answer[i] = redis.call('HINCRBY', key, 'spent', ARGV[2])
    end
  end
end
return answer
