-- Forget a run over the golden set, unless it is another by now.
-- KEYS  1 the run and its verdicts by row
-- ARGV  1 number of the run
-- gives 1 | 0
if redis.call('HGET', KEYS[1], 'run') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
