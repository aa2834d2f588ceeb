-- Count one result of a tenant's shadow phase, once for each job.
-- KEYS  1 mark of the job, 2 counts
-- ARGV  1 field, 2 retention_s of the mark
-- gives 1 | 0 (it was counted before)
if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[2]) then return 0 end
redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
return 1
