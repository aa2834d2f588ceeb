-- Hand events to a consumer: retries that are due, then what dead consumers held, then new ones by weighted draw among the lanes.
-- Every ticket that is handed out stands for exactly one event, so the stream's lag and pending are right at every step.
-- USES _clock
-- KEYS  1 tickets, 2 events, 3 held hash (ticket to member), 4 retry set, 5 tries hash, 6..8 ready sets, 9..11 fair-share hashes
-- ARGV  1 group, 2 consumer, 3 count, 4 bytes with which a claim is full, 5 claim_idle_ms (0: leave other consumers' events alone),
--       6 the last ticket that the search for those saw, '' at its begin, 7 the ticket that woke it since its last claim, '' if none did,
--       8 how long a search of another consumer serves this one too, in ms (0: not at all), 9..11 lane weights,
--       12..11+n one number in [0,1) an event, 12+n of a consumer beside others: tickets that it deferred, a bar if its engine has seen anything,
--       and prefixes that it has seen where some may be waiting; ',' before and after each (docs/adr/0325),
--       13+n its name as a holder of prefixes (docs/adr/0372)
-- gives {last ticket that the search saw ('' when it is at its end),
--        '1' if the search saw another consumer at work, '0' if it saw none, '' without a search,
--        ms after which to claim again, since an event is left to its holder until then (0: for no such reason),
--        {ticket, member, '<enqueued_ms> <record>', tries, refusals, ms since the first refusal, prefix of its prompt (of a consumer beside
--         others), how often it was passed over, ms since it was left to a holder (-1: never)}...}
local group, consumer, count, idle, seen = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5]), ARGV[6]
local now, left = now_ms(), tonumber(ARGV[4])
local PAGE = 500
local WINDOW, MOST_PASSES, PASS_MS = 16, 4, 500 -- of the fair order, how many are looked at; how often and for how long one is passed over
local LEFT_MS, ROOM_MS, BUCKETS = 30, 2000, 16384 -- how long one is left to its holder; a claim says for how long that there is room
local MOST_HOLDERS, COMES_BACK = 16, 2 -- of a prefix; consumers that come back for an event that is left
local known, holder, others, again_ms = ARGV[12 + count], ARGV[13 + count], '', 0
local is_affine = known and string.find(known, '|', 1, true)
local holders, room, left_since, wake = 'holders', 'room', 'left', 'wake:'
if known then
  local prefix = string.gsub(KEYS[5], 'tries$', '')
  holders, room, left_since, wake = prefix .. holders, prefix .. room, prefix .. left_since, prefix .. wake
end
local READ = 4 -- records in one read; of those, what is over the bytes of a claim is read in vain

-- Of a ticket that stands for nothing any more, the member is false.
local tickets, members, records = {}, {}, {}
local function is_full() return #tickets >= count or left <= 0 end
-- Read the records of these members, until the claim is full; gives how many.
local function read(names)
  local done = 0
  for first = 1, #names, READ do
    for _, record in ipairs(redis.call('HMGET', KEYS[2], unpack(names, first, math.min(first + READ - 1, #names)))) do
      if left <= 0 then return done end
      done = done + 1
      records[names[done]] = record
      left = left - #(record or '')
    end
  end
  return done
end
-- What was handed out before.
local function take_over(found)
  local taken = {}
  for i, member in ipairs(#found > 0 and redis.call('HMGET', KEYS[3], unpack(found)) or {}) do
    if is_full() then break end
    if member then read({member}) end
    tickets[#tickets + 1], members[#members + 1], taken[i] = found[i], member, found[i]
  end
  if #taken == 0 then return 0 end
  redis.call('ZREM', KEYS[4], unpack(taken))
  local words = {KEYS[1], group, consumer, 0, unpack(taken)}
  words[#words + 1] = 'JUSTID'
  redis.call('XCLAIM', unpack(words))
  return #taken
end
-- Of the retries that are due, those that another consumer is to take: its engine may have begun them, and it has not been due for long.
local function without_others(due)
  local kept = {}
  for i = 1, #due, 2 do
    if now - due[i + 1] >= PASS_MS or string.find(known, ',' .. due[i] .. ',', 1, true) then kept[#kept + 1] = due[i] end
  end
  return kept
end
if idle > 0 then follow_clock(KEYS[4], now) end
if is_affine then
  take_over(without_others(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'WITHSCORES', 'LIMIT', 0, count + WINDOW)))
else
  take_over(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, count))
end
if idle > 0 and known then
  -- A consumer with room may have nothing pending. A name that has not claimed for that long is forgotten.
  redis.call('ZREMRANGEBYSCORE', room, '-inf', now - idle)
  if redis.call('ZCARD', room) > (redis.call('ZSCORE', room, holder) and 1 or 0) then others = '1' end
  redis.call('ZREMRANGEBYSCORE', left_since, '-inf', now - 60000)
  for _, key in ipairs({holders, room, left_since, wake .. holder}) do redis.call('EXPIRE', key, 3600) end
end
-- With many consumers one searches for all of them: two hundred, each for itself, took half of the store's time with 10,000 events in flight.
local every = tonumber(ARGV[8])
if idle > 0 and every > 0 and seen == '' then
  local due = tonumber(redis.call('HGET', KEYS[5], '\0search') or 0)
  if due > now and due <= now + every then idle = 0 -- a clock that was set back makes it due
  else redis.call('HSET', KEYS[5], '\0search', string.format('%d', now + every)) end
end
-- Orphans: idle, and not because they wait for their retry. One page a call, since very many may wait. (XAUTOCLAIM would look at ten
-- entries for each it may give, always from the first, and never reach an orphan behind enough that live or wait.)
if idle > 0 and is_full() then
  seen = seen == '' and '0-0' or seen -- the search is still to be made
elseif idle > 0 then
  local page = redis.call('XPENDING', KEYS[1], group, seen == '' and '-' or '(' .. seen, '+', PAGE)
  local waits, orphans = {}, {}
  if others == '' then others = '0' end
  for i, row in ipairs(page) do
    waits[i] = row[1]
    if row[2] ~= consumer and row[3] < idle then others = '1' end
  end
  if #page > 0 then waits = redis.call('ZMSCORE', KEYS[4], unpack(waits)) end
  seen = #page == PAGE and page[PAGE][1] or ''
  for i, row in ipairs(page) do
    if not waits[i] and row[3] >= idle then
      orphans[#orphans + 1] = row[1]
    elseif not waits[i] and row[3] == 0 then
      -- Heard of just now, or by a clock that was ahead of ours: as of now, or it would not be idle until that time comes again.
      redis.call('XCLAIM', KEYS[1], group, row[2], 0, row[1], 'JUSTID')
    end
  end
  local taken = take_over(orphans)
  if taken < #orphans then seen = orphans[taken] or seen end
end

-- New ones: first whose turn each is, as far as there is room, then all of a lane at once.
local drawn, lanes, turns, heads = {0, 0, 0}, {}, {}, {{}, {}, {}}
local want = is_full() and 0 or count - #tickets
-- How much of a prompt this consumer's engine has seen: blocks from the first on, and keys that its caller named.
local function match_length(prefix)
  local length, is_seen = 0, true
  for word in string.gmatch(prefix, '[^,]+') do
    local is_block = string.find(word, '^%x')
    if is_seen or not is_block then
      local found = string.find(known, ',' .. word .. ',', 1, true)
      if found then length = length + 1 elseif is_block then is_seen = false end
    end
  end
  return length
end
local prefixes = {}
local function prefix_of(member)
  if not prefixes[member] then
    local job_id = string.match(member, '^/torpor/api%z(job_%x+)$')
    prefixes[member] = job_id and redis.call('HGET', 'torpor:{' .. job_id .. '}', 'prefix') or ''
  end
  return prefixes[member]
end
-- Who holds the prefixes of jobs: by word, those that claimed it last, newest first. A word shares its field with others.
local function field_of(word) return tonumber(string.sub(word, -4), 16) % BUCKETS end
local function words_of(prefix)
  local words, fields = {}, {}
  for word in string.gmatch(prefix, '[^,]+') do words[#words + 1], fields[#fields + 1] = word, field_of(word) end
  return words, #fields > 0 and redis.call('HMGET', holders, unpack(fields)) or {}
end
-- Whose a job is: of those who hold the longest match (what its caller named first, then the most blocks), the last one that has room. A match
-- of less than half of the blocks does not count: all prompts that share a short start would gather at one engine.
local with_room
local function whose(prefix)
  if not with_room then
    with_room = {}
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', room, now - ROOM_MS, now + ROOM_MS)) do with_room[name] = true end
    with_room[holder] = nil
  end
  if prefix == '' or not next(with_room) then return nil end
  local words, found = words_of(prefix)
  local _, blocks = string.gsub(',' .. prefix, ',%x', '')
  for i = #words, 1 + math.floor(blocks / 2), -1 do
    if found[i] and string.match(found[i], '^%S+') == words[i] then
      for name in string.gmatch(found[i], ' (%S+)') do
        if name == holder or with_room[name] then return name end
      end
    end
  end
end
local function hold(prefix)
  local words, found = words_of(prefix)
  local pairs_held = {}
  for i, word in ipairs(words) do
    local names, before = {word, holder}, found[i] or ''
    if string.match(before, '^%S+') == word then
      for name in string.gmatch(before, ' (%S+)') do
        if name ~= holder and #names <= MOST_HOLDERS then names[#names + 1] = name end
      end
    end
    pairs_held[#pairs_held + 1], pairs_held[#pairs_held + 2] = field_of(word), table.concat(names, ' ')
  end
  if #pairs_held > 0 then redis.call('HSET', holders, unpack(pairs_held)) end
end
-- Nothing is taken from behind one that was passed over often enough. The store's clock may have gone back.
local function is_due(each)
  return each.passes >= MOST_PASSES or (each.since and (now - each.since >= PASS_MS or now < each.since))
end
-- Leave an event to the holder of its prefix, once and not for long, and wake that one. Of those that see it, two come back for it.
local function is_left(each)
  if not each.holder or each.holder == holder or is_due(each) then return false end
  local since = redis.call('ZSCORE', left_since, each.member)
  local passed = since and now - math.floor(since) or 0
  if passed < 0 or passed >= LEFT_MS then return false end
  if not since then
    redis.call('XADD', wake .. each.holder, 'MAXLEN', '~', 100, '*', 't', '1')
    redis.call('EXPIRE', wake .. each.holder, 3600)
  end
  local came = since and math.floor((since - math.floor(since)) * 4) or 0
  if came < COMES_BACK then
    redis.call('ZADD', left_since, string.format('%.2f', now - passed + (came + 1) / 4), each.member)
    again_ms = LEFT_MS - passed
  end
  return true
end
-- The first that wait in a lane, each with its score, what matches, whether it is left to another, and how often and since when it was
-- passed over.
local left_any = false
local function candidates(lane)
  local rows, found, names = redis.call('ZRANGE', KEYS[5 + lane], 0, want + WINDOW - 2, 'WITHSCORES'), {}, {}
  for i = 1, #rows, 2 do
    found[#found + 1] = {member = rows[i], score = rows[i + 1]}
    names[#names + 1] = '\0passed:' .. rows[i]
  end
  local passed = #names > 0 and redis.call('HMGET', KEYS[5], unpack(names)) or {}
  for i, each in ipairs(found) do
    each.passes, each.since = string.match(passed[i] or '0 ', '^(%d+) (%d*)$')
    each.passes, each.since = tonumber(each.passes), tonumber(each.since)
    each.prefix = prefix_of(each.member)
    each.holder = whose(each.prefix)
    each.length = #found > 1 and match_length(each.prefix) or 0
    if each.holder == holder then each.length = each.length + 1 end
    each.left = is_left(each)
    left_any = left_any or each.left
  end
  return found
end
-- Where among the first of a lane the best match is; nil where all are left to others.
local function best_of(waiting)
  local best, at = -1, nil
  for i = 1, math.min(WINDOW, #waiting) do
    local each, due = waiting[i], is_due(waiting[i])
    if each.length > best and (due or not each.left) then best, at = each.length, i end
    if due then break end
  end
  return at
end
-- Take the best match among the first of a lane.
local passed_over = {}
local function take_best(waiting)
  local at = best_of(waiting)
  for i = 1, at - 1 do
    local each = waiting[i]
    each.passes, each.since = each.passes + 1, each.since or now
    passed_over[each] = true
  end
  passed_over[waiting[at]] = nil
  return table.remove(waiting, at)
end
local picked = {}
for lane = 1, want > 0 and 3 or 0 do
  heads[lane] = is_affine and candidates(lane) or redis.call('ZRANGE', KEYS[5 + lane], 0, want - 1)
end
local many = {#heads[1], #heads[2], #heads[3]}
local function has_more(lane)
  if is_affine then return best_of(heads[lane]) ~= nil end
  return drawn[lane] < many[lane]
end
for i = 1, math.min(want, many[1] + many[2] + many[3]) do
  local total, open = 0, {}
  for lane = 1, 3 do
    open[lane] = has_more(lane)
    if open[lane] then total = total + ARGV[8 + lane] end
  end
  if total == 0 then break end
  local draw = ARGV[11 + i] * total
  for lane = 1, 3 do
    if open[lane] then
      lanes[i] = lane
      draw = draw - ARGV[8 + lane]
      if draw < 0 then break end
    end
  end
  drawn[lanes[i]] = drawn[lanes[i]] + 1
  picked[i] = is_affine and take_best(heads[lanes[i]]) or nil
  turns[i] = picked[i] and picked[i].member or heads[lanes[i]][drawn[lanes[i]]]
end
local chosen = read(turns)
local most = (chosen < #turns or left_any) and chosen or want -- a ticket more than events would be one of those that are left
local answer = most > 0 and redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', most, 'STREAMS', KEYS[1], '>')
local entries = answer and answer[1] and answer[1][2] or {}
local pairs_held, popped = {}, {0, 0, 0}
for i, entry in ipairs(entries) do
  local member = i <= chosen and turns[i]
  if member then
    popped[lanes[i]] = popped[lanes[i]] + 1
    pairs_held[#pairs_held + 1], pairs_held[#pairs_held + 2] = entry[1], member
  end
  tickets[#tickets + 1], members[#members + 1] = entry[1], member or false
end
-- As ZPOPMIN below, of those that were picked. Nothing that waits stands before the lane's clock.
local function pop_picked(lane)
  local names, clock = {}, 0
  for i, each in ipairs(picked) do
    if lanes[i] == lane and i <= #entries and i <= chosen then names[#names + 1], clock = each.member, math.max(clock, tonumber(each.score)) end
  end
  redis.call('ZREM', KEYS[5 + lane], unpack(names))
  local first = redis.call('ZRANGE', KEYS[5 + lane], 0, 0, 'WITHSCORES')
  if #first == 0 then redis.call('DEL', KEYS[8 + lane])
  else redis.call('HSET', KEYS[8 + lane], 'clock', string.format('%.17g', math.min(clock, tonumber(first[2])))) end
end
for lane = 1, 3 do
  if popped[lane] > 0 and is_affine then
    pop_picked(lane)
  elseif popped[lane] > 0 then
    local clock = redis.call('ZPOPMIN', KEYS[5 + lane], popped[lane])[2 * popped[lane]]
    local is_last = popped[lane] == #heads[lane] and (#heads[lane] < want or redis.call('EXISTS', KEYS[5 + lane]) == 0)
    if is_last then redis.call('DEL', KEYS[8 + lane])
    else redis.call('HSET', KEYS[8 + lane], 'clock', clock) end
  end
end
local passes = {}
for each in pairs(passed_over) do
  passes[#passes + 1], passes[#passes + 2] = '\0passed:' .. each.member, string.format('%d %d', each.passes, each.since)
end
if #passes > 0 then redis.call('HSET', KEYS[5], unpack(passes)) end
if #pairs_held > 0 then redis.call('HSET', KEYS[3], unpack(pairs_held)) end
-- Nothing is left: consumers that wait are woken by the tickets that come from now on. Who took nothing and was not woken leaves it to others.
if want > 0 and most == want and #entries < want and (#entries > 0 or ARGV[7] ~= '') then
  local last = entries[#entries] or redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  if last and last[1] ~= ARGV[7] then redis.pcall('XGROUP', 'SETID', KEYS[1], 'torpor-wake', last[1]) end
end

-- What they stand for, and how often that was tried. A ticket that stands for nothing is done with.
if is_affine and left > 0 and #tickets < count then redis.call('ZADD', room, now, holder)
elseif is_affine then redis.call('ZREM', room, holder) end
if #tickets == 0 then return {seen, others, again_ms} end
local names, fields = {}, {}
for i, member in ipairs(members) do
  names[i] = member or ''
  for _, before in ipairs({'', '\0refused:', '\0refused_ms:', '\0passed:'}) do fields[#fields + 1] = before .. names[i] end
end
local before = redis.call('HMGET', KEYS[5], unpack(fields))
local were_left = known and redis.call('ZMSCORE', left_since, unpack(names)) or {}
local out, tries = {seen, others, again_ms}, {}
for i, ticket in ipairs(tickets) do
  if records[names[i]] then
    local tried, refused, refused_ms, passed = unpack(before, 4 * i - 3, 4 * i)
    local prefix = known and prefix_of(names[i]) or ''
    if prefix ~= '' then hold(prefix) end
    out[#out + 1] = {ticket, names[i], records[names[i]], (tried or 0) + 1, tonumber(refused or 0), refused_ms and now - refused_ms or 0,
      prefix, tonumber(string.match(passed or '0', '^%d+')), were_left[i] and now - math.floor(were_left[i]) or -1}
    tries[#tries + 1] = names[i]
    tries[#tries + 1] = (tried or 0) + 1
  else
    redis.call('XACK', KEYS[1], group, ticket)
    redis.call('HDEL', KEYS[3], ticket)
  end
end
if #tries > 0 then redis.call('HSET', KEYS[5], unpack(tries)) end
return out
