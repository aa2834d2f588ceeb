-- Checkpoint tokens of a running attempt: in order, without a gap, by the newest attempt only.
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 attempt, 2 index of the first token, 3 number of tokens, 4 token ids, 5 what readers are shown (JSON)
-- gives 'ok' | 'fenced' | 'terminal' | 'gap' | 'missing'
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'token_count')
if not job[1] then return 'missing' end
if job[2] ~= ARGV[1] or job[1] == 'queued' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return 'fenced'
end
if job[1] ~= 'in_progress' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return 'terminal'
end
if job[3] ~= ARGV[2] then return 'gap' end
redis.call('HSET', KEYS[1], 'token_count', ARGV[2] + ARGV[3])
if ARGV[2] == '0' then
  local t = redis.call('TIME')
  redis.call('HSETNX', KEYS[1], 'first_token_ms', t[1] * 1000 + math.floor(t[2] / 1000))
end
redis.call('XADD', KEYS[2], '*', 'kind', 'tokens', 'attempt', ARGV[1], 'index', ARGV[2], 'ids', ARGV[4], 'delta', ARGV[5])
return 'ok'
