-- Hold what a job may cost against the budgets of its tenant and its key, all or nothing. A budget refuses when what is spent, what is held
-- and this job are over it, or when nothing is left of it.
-- USES _clock _budget
-- KEYS  1.. accounts
-- ARGV  1 job id, 2 amount, 3 price of a millisecond of GPU time, then for each account the budget (0 for none) and the soft one
-- gives {number of the account that refuses or 0, ms until the next month, for each account: spent, held}
local now = now_ms()
local month, next_day = month_of(math.floor(now / 86400000))
local refusing, amount, found = 0, tonumber(ARGV[2]), {}
for i, key in ipairs(KEYS) do
  local budget, spent = tonumber(ARGV[2 + 2 * i]), spent_in(key, month, ARGV[3])
  local held = held_in(key, now)
  found[#found + 1], found[#found + 2] = spent, held
  local is_over = budget > 0 and (spent + held + amount > budget or spent + held >= budget)
  if refusing == 0 and is_over and redis.call('HEXISTS', key, 'hold:' .. ARGV[1]) == 0 then refusing = i end
end
if refusing == 0 then
  for i, key in ipairs(KEYS) do
    redis.call('HSET', key, 'budget', ARGV[2 + 2 * i], 'soft', ARGV[3 + 2 * i])
    if redis.call('HSETNX', key, 'hold:' .. ARGV[1], string.format('%d %d', amount, now)) == 1 then found[2 * i] = found[2 * i] + amount end
  end
end
return {refusing, next_day * 86400000 - now, unpack(found)}
