-- Put what a job cost in the place of what was held for it, once. Says of each account whether the soft budget of this month is passed, and
-- it was not told yet, and no process is telling it.
-- USES _clock _budget
-- KEYS  1.. accounts
-- ARGV  1 job id, 2 what it cost, 3 ms for which the caller may tell, 4 price of a millisecond of GPU time
-- gives {the month, for each account: {1 to tell it or 0, spent, budget, soft budget}}
local now = now_ms()
local month = month_of(math.floor(now / 86400000))
local answer = {month}
for i, key in ipairs(KEYS) do
  if redis.call('HDEL', key, 'hold:' .. ARGV[1]) == 1 then
    spent_in(key, month, ARGV[4])
    redis.call('HINCRBY', key, 'spent', ARGV[2])
  end
  local held = redis.call('HMGET', key, 'month', 'spent', 'budget', 'soft', 'told')
  local spent, soft = held[1] == month and tonumber(held[2]) or 0, tonumber(held[4] or 0)
  local told, telling = string.match(held[5] or '', '^(%S+) ?(%d*)$')
  local is_due = soft > 0 and spent >= soft and (told ~= month or (telling ~= '' and tonumber(telling) <= now))
  if is_due then redis.call('HSET', key, 'told', string.format('%s %d', month, now + ARGV[3])) end
  answer[i + 1] = {is_due and 1 or 0, spent, held[3] or '0', held[4] or '0'}
end
return answer
