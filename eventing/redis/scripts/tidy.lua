-- Cut the ticket stream behind its group: nothing undelivered and nothing pending is ever dropped, so lag stays right.
-- KEYS  1 tickets
-- ARGV  1 group
local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
local floor = pending[2]
if not floor then
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local is_ours = false
    for i = 1, #group, 2 do
      if group[i] == 'name' and group[i + 1] == ARGV[1] then is_ours = true end
      if group[i] == 'last-delivered-id' and is_ours then floor = group[i + 1] end
    end
  end
end
if not floor then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', floor)
