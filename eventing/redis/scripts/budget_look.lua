-- What is spent and held of budgets this month.
-- USES _clock _budget
-- KEYS  1.. accounts
-- ARGV  1 price of a millisecond of GPU time
-- gives {the month, ms until the next one, for each account: spent, held}
local now = now_ms()
local month, next_day = month_of(math.floor(now / 86400000))
local found = {}
for _, key in ipairs(KEYS) do
  found[#found + 1] = spent_in(key, month, ARGV[1])
  found[#found + 1] = held_in(key, now)
end
return {month, next_day * 86400000 - now, unpack(found)}
