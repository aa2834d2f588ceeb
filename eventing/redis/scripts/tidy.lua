-- Cut the ticket stream behind its group: nothing undelivered and nothing pending is ever dropped, so lag stays right.
-- And forget consumers that are gone: each start of a pump is a new one, and nothing else removes them.
-- KEYS  1 tickets
-- ARGV  1 group, 2 how long a consumer without events was silent that is gone, in ms (0: leave them), 3 the consumer that asks
-- gives 1 if another consumer has events, else 0
-- First: of a queue that the store has lost it says NOGROUP, which the caller knows. XINFO has another error.
local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
if ARGV[2] ~= '0' then
  for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local consumer = {}
    for i = 1, #row, 2 do consumer[row[i]] = row[i + 1] end
    if consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    end
  end
end
local floor, others = pending[2], 0
for _, row in ipairs(pending[4] or {}) do
  if row[1] ~= ARGV[3] then others = 1 end
end
if not floor then
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local is_ours = false
    for i = 1, #group, 2 do
      if group[i] == 'name' and group[i + 1] == ARGV[1] then is_ours = true end
      if group[i] == 'last-delivered-id' and is_ours then floor = group[i + 1] end
    end
  end
end
if floor then redis.call('XTRIM', KEYS[1], 'MINID', floor) end
return others
