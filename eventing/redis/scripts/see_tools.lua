-- Note the list of a tool server that was just read for a tenant, and pin it where it is the first.
-- USES _clock
-- KEYS  1 the tenant's lists: `LABEL` (JSON: address, digest, read_ms, pinned, pinned_ms, by), `LABEL:tools` and `LABEL:pinned` (tools of both)
-- ARGV  1 label, 2 digest of the server's address, 3 digest of the list, 4 its tools (JSON), 5 '1' to pin, 6 '1' where a list may lack pinned tools (it was given for a request's own credentials)
-- gives 'same' | 'first' | 'changed'
local SEEN_EVERY_MS = 60000 -- the time of a list that stays the same is written so often
local function has_all(pinned, tools)
  local known = {}
  for _, tool in ipairs(cjson.decode(pinned)) do known[tool.digest .. tool.name] = true end
  for _, tool in ipairs(cjson.decode(tools)) do
    if not known[tool.digest .. tool.name] then return false end
  end
  return true
end
local label, raw, now = ARGV[1], redis.call('HGET', KEYS[1], ARGV[1]), now_ms()
local known = raw and cjson.decode(raw)
if not known or known.address ~= ARGV[2] then known = {address = ARGV[2], read_ms = 0, pinned = '', by = ''} end
local answer, is_new = 'same', known.digest ~= ARGV[3]
if ARGV[5] ~= '1' then
  is_new = is_new or known.pinned ~= ''
  known.pinned = ''
elseif known.pinned == '' then
  answer, is_new = 'first', true
  known.pinned, known.pinned_ms, known.by = ARGV[3], now, ''
  redis.call('HSET', KEYS[1], label .. ':pinned', ARGV[4])
elseif known.pinned ~= ARGV[3] then
  if ARGV[6] == '1' and has_all(redis.call('HGET', KEYS[1], label .. ':pinned') or '[]', ARGV[4]) then return 'same' end
  answer = 'changed'
end
if is_new or math.abs(now - known.read_ms) >= SEEN_EVERY_MS then
  if known.digest ~= ARGV[3] then redis.call('HSET', KEYS[1], label .. ':tools', ARGV[4]) end
  known.digest, known.read_ms = ARGV[3], now
  redis.call('HSET', KEYS[1], label, cjson.encode(known))
end
return answer
