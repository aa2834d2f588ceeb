-- Ask to send a call to a provider: its circuit breaker must be closed (or this is the one probe), and its buckets of requests and tokens
-- must hold what the call is expected to take. All processes that use the provider share the hash, by store time.
-- USES _clock _provider
-- KEYS  1 provider hash
-- ARGV  1 tokens of the prompt (estimated), 2 most tokens of the answer ('' for any), 3 window_ms of the limits,
--       4 share of the limits that this lane leaves to others (0 to 1), 5 requests a window to begin with, 6 probe_ms: longest probe
-- gives {'granted', seq, tokens reserved, tokens reserved by all so far, '1' for a probe, ms after which it is late (0: unknown)}
--       | {'wait', ms, 'open' | 'limited'}
local FIRST_CALLS, WAIT_MS, USUAL_ANSWER = 5, 200, 512
local p = read_provider(KEYS[1])
local now = now_ms()
local is_probe = false
if p.state == 'open' then
  if now < p.open_until then return {'wait', p.open_until - now, 'open'} end
  p.state, p.successes, p.probe_until = 'half_open', 0, 0
end
if p.state == 'half_open' then
  if now < p.probe_until then return {'wait', math.min(p.probe_until - now, 1000), 'open'} end
  is_probe = true
end
refill(p, now, tonumber(ARGV[3]), tonumber(ARGV[5]))
if now < p.blocked_until then return {'wait', p.blocked_until - now, 'limited'} end
-- Until the first answer has said what the limits are, a few calls only.
if p.settled == 0 and p.seq >= FIRST_CALLS and not is_probe then return {'wait', WAIT_MS, 'limited'} end
local answer = p.p95 > 0 and p.p95 or USUAL_ANSWER
if ARGV[2] ~= '' then answer = math.min(answer, tonumber(ARGV[2])) end
local tokens = tonumber(ARGV[1]) + answer
local wait = math.max(wait_for(p.level_r, p.limit_r, 1, ARGV), wait_for(p.level_t, p.limit_t, tokens, ARGV))
if wait > 0 and not is_probe then
  write_provider(KEYS[1], p)
  return {'wait', wait, 'limited'}
end
p.level_r, p.level_t = p.level_r - 1, p.level_t - tokens
p.seq, p.reserved = p.seq + 1, p.reserved + tokens
if is_probe then p.probe_until = now + ARGV[6] end
write_provider(KEYS[1], p)
return {'granted', p.seq, tokens, p.reserved, is_probe and '1' or '', is_probe and 0 or p.hedge_after}
