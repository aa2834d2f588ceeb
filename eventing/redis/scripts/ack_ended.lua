-- Acknowledge entries of the stream of ended jobs, and add what each job used to its tenant's day. An entry counts only where it is pending,
-- which ends here: one that was delivered twice, or to two processes, is counted once.
-- USES _usage
-- KEYS  1 stream of ends
-- ARGV  1 group, 2 seconds that a day is kept, then for each entry, in order: its id, key of the tenant's day ('' for nothing to count), row,
--       measures as JSON
-- gives how many entries were counted
local added, n = {}, 0
for i = 3, #ARGV, 4 do
  local day = ARGV[i + 1]
  if redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]) == 1 then
    n = n + 1
    if day ~= '' then
      added[day] = added[day] or {}
      local sums = added[day][ARGV[i + 2]] or {}
      for name, amount in pairs(cjson.decode(ARGV[i + 3])) do sums[name] = (sums[name] or 0) + amount end
      added[day][ARGV[i + 2]] = sums
    end
  end
end
for day, rows in pairs(added) do
  for row, sums in pairs(rows) do add_usage(day, row, sums) end
  redis.call('EXPIRE', day, ARGV[2])
end
return n
