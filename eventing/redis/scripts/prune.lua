-- Take jobs whose record has expired out of their tenants' lists. One that was recorded again since, or redriven, stays.
-- USES _clock
-- KEYS  1 index of ended jobs by when their record expires, `<list> <job id>` each
-- ARGV  1 most to look at
-- gives how many were looked at
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms(), 'LIMIT', 0, ARGV[1])
local gone = {}
for _, member in ipairs(due) do
  local list, job_id = string.match(member, '^(.*) (.*)$')
  gone[list] = gone[list] or {}
  if redis.call('HEXISTS', 'torpor:{' .. job_id .. '}', 'state') == 0 then table.insert(gone[list], job_id) end
end
for list, job_ids in pairs(gone) do
  local jobs, dead, feed = 'torpor:jobs:' .. list, 'torpor:dead:' .. list, 'torpor:results:' .. list
  for _, key in ipairs({jobs, dead}) do
    if #job_ids > 0 then redis.call('ZREM', key, unpack(job_ids)) end
  end
  if redis.call('EXISTS', jobs) == 0 then redis.call('DEL', feed) end
  for _, key in ipairs({jobs, dead, feed}) do redis.call('PERSIST', key) end -- older versions gave them a time to live
end
if #due > 0 then redis.call('ZREM', KEYS[1], unpack(due)) end
return #due
