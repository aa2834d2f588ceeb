-- Let the rows of a golden set wait that have no verdict in the newest run over it, before every audit.
-- KEYS  1 the run and its verdicts by row, 2 audits of the critic that wait, 3 those that were asked
-- ARGV  1 before the number of the run in a row's name, 2 number of the run, if there is none, 3 number of rows, 4 kept_s of 1
-- gives how many rows have no verdict
if redis.call('HSETNX', KEYS[1], 'run', ARGV[2]) == 1 then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
local before = ARGV[1] .. redis.call('HGET', KEYS[1], 'run') .. ':'
local left = 0
for row = 0, ARGV[3] - 1 do
  if redis.call('HEXISTS', KEYS[1], row) == 0 then
    left = left + 1
    local name = before .. row
    if not redis.call('ZSCORE', KEYS[3], name) then redis.call('ZADD', KEYS[2], 0, name) end
  end
end
return left
