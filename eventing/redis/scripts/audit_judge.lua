-- Record the verdict of one audit, or of one golden row, and count it: once, however often it comes.
-- USES _clock
-- KEYS  1 hash of the audit, or of the run over the golden set, 2 audits of the critic that were asked, 3 counts of the day on which the
--       judged job ended, 4 GPU time of audits on the day on which this one ended
-- ARGV  1 number of the run over the golden set, '' for an audit, 2 field of the verdict in 1, 3 verdict, 4 name of the audit,
--       5 kept_s of 3 and 4, 6 critic, 7 its version, 8 milliseconds of GPU time, 9.. field, amount pairs for 3
-- gives 1 | 0 (it has a verdict already, or is gone)
redis.call('ZREM', KEYS[2], ARGV[4])
if redis.call('EXISTS', KEYS[1]) == 0 or (redis.call('HGET', KEYS[1], 'run') or '') ~= ARGV[1] then return 0 end
if redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3]) == 0 then return 0 end
if ARGV[1] == '' then redis.call('HSET', KEYS[1], 'judged_ms', now_ms(), 'critic_version', ARGV[7])
elseif ARGV[3] == 'failed' then redis.call('HSET', KEYS[1], 'failed_ms', now_ms()) end
for i = 9, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[3], ARGV[i], ARGV[i + 1]) end
if #ARGV > 8 then redis.call('EXPIRE', KEYS[3], ARGV[5]) end
if tonumber(ARGV[8]) > 0 then
  redis.call('HINCRBY', KEYS[4], ARGV[6] .. '|gpu_ms', ARGV[8])
  redis.call('HINCRBY', KEYS[4], ARGV[6] .. '|jobs', 1)
  redis.call('EXPIRE', KEYS[4], ARGV[5])
end
return 1
