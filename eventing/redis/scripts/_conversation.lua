-- Conversations: what is said in them, and the turn of a job.

-- Let a conversation live for its whole time again, from now on.
local function keep_conversation(conversation)
  local keep_s = redis.call('HGET', conversation, 'keep_s')
  for _, part in ipairs({'', ':items', ':order', ':vectors'}) do redis.call('EXPIRE', conversation .. part, keep_s) end
end

-- Put items (id, JSON in turn) at the end of a conversation. One whose id is there already stays as it is, so that the same items again
-- change nothing.
local function append_items(conversation, pairs_of_items)
  local seq, added = tonumber(redis.call('HGET', conversation, 'seq')), 0
  for i = 1, #pairs_of_items, 2 do
    if redis.call('HSETNX', conversation .. ':items', pairs_of_items[i], pairs_of_items[i + 1]) == 1 then
      seq, added = seq + 1, added + #pairs_of_items[i + 1]
    end
    redis.call('ZADD', conversation .. ':order', 'NX', seq, pairs_of_items[i])
  end
  redis.call('HSET', conversation, 'seq', seq)
  redis.call('HINCRBY', conversation, 'bytes', added)
  keep_conversation(conversation)
end

-- A value of a result as text, or as a table; an empty one where it is something else. A foreign predictor's result may hold anything.
local function text_of(value) return type(value) == 'string' and value or '' end
local function table_of(value) return type(value) == 'table' and value or {} end

-- The hosts that links of a job's answer may lead to, as a JSON field of its items; '' where its plan does not retrieve, so that nothing can
-- have been planted. The text is kept as it was generated; `eventing.store.conversation.shown` leaves the others out where it is read.
local function link_hosts_field(key)
  local plan = table_of(cjson.decode(redis.call('HGET', key, 'plan') or '{}'))
  local hosts, is_filtered = {}, false
  for _, step in ipairs(table_of(plan.steps)) do
    local name, settings = table_of(step).name, table_of(table_of(step).settings)
    if name == 'retrieve' or (name == 'tools' and type(settings.links) == 'table') then
      is_filtered = true
      for _, host in ipairs(table_of(name == 'tools' and settings.links or settings.allowed_hosts)) do
        if type(host) == 'string' then hosts[#hosts + 1] = name == 'tools' and host or string.lower(host) end
      end
    end
  end
  return is_filtered and '"link_hosts":' .. (#hosts > 0 and cjson.encode(hosts) or '[]') .. ',' or ''
end

-- The items of a message of the model: its thought, its text, and calls of the caller's functions, in order.
local function add_message(add, tail, message, cut)
  local thought = text_of(message.reasoning)
  if thought == '' then thought = text_of(message.reasoning_content) end
  if thought ~= '' then
    add('rs_' .. tail, 'reasoning', '"summary":[],"content":[{"type":"reasoning_text","text":' .. cjson.encode(thought)
      .. '}],"status":"completed"')
  end
  if text_of(message.content) ~= '' then
    add('msg_' .. tail, 'message', '"role":"assistant","status":"' .. (cut and 'incomplete' or 'completed')
      .. '","content":[{"type":"output_text","text":' .. cjson.encode(message.content) .. ',"annotations":[],"logprobs":[]}]')
  end
end
local function add_function_call(add, tail, place, name, call_id, arguments)
  local id = 'fc_' .. tail .. '_' .. place
  if name ~= '' then -- a call of nothing could be given to no engine again
    add(id, 'function_call', '"call_id":' .. cjson.encode(call_id ~= '' and call_id or id) .. ',"name":' .. cjson.encode(name)
      .. ',"arguments":' .. cjson.encode(arguments) .. ',"status":"completed"')
  end
end

-- The item of a call that was run here, as `api.view.items.tools` makes it, of a job that has ended.
local function add_server_call(add, tail, call)
  local named = '"server_label":' .. cjson.encode(call.server) .. ',"name":' .. cjson.encode(text_of(call.tool) ~= '' and call.tool or call.name)
    .. ',"arguments":' .. cjson.encode(text_of(call.arguments))
  if call.state == 'awaiting_approval' then
    add(call.approval_id, 'mcp_approval_request', named)
    return
  end
  local output, failed, status = text_of(call.output), 'null', 'incomplete'
  if call.state == 'returned' and call.is_error ~= 1 then
    status = 'completed'
  elseif call.state == 'returned' then
    status = 'failed'
    failed = '{"type":"mcp_tool_execution_error","content":[{"type":"text","text":' .. cjson.encode(output) .. '}]}'
  else
    if call.state == 'denied' then status = 'failed' end
    if output == '' then output = text_of(call.reason) end
    if output == '' then output = 'the call was not carried out' end
    failed = '{"type":"mcp_protocol_error","code":-32000,"message":' .. cjson.encode(output) .. '}'
  end
  local asked, own = text_of(call.approval_id), 'mcpr_' .. tail .. '_'
  if string.sub(asked, 1, #own) == own then asked = '' end -- an item of this very job
  add(string.format('mcp_%s_%d_%d', tail, call.turn, call.place), 'mcp_call', named .. ',"status":"' .. status .. '","output":'
    .. (status == 'completed' and cjson.encode(output) or 'null') .. ',"error":' .. failed
    .. ',"approval_request_id":' .. (asked ~= '' and cjson.encode(asked) or 'null'))
end

-- The items of the turns before a job's answer; gives whether the answer is the last of them.
local function add_turns(add, key, tail, turns)
  local ends = false
  for number = 1, tonumber(turns) do
    local turn = cjson.decode(redis.call('HGET', key, 'turn:' .. number) or '{}')
    local own = number == 1 and tail or tail .. '_' .. number
    if turn.carried ~= 1 then add_message(add, own, cjson.decode(turn.message or '{}'), false) end
    local after = {}
    for place = 0, (turn.calls or 0) - 1 do
      local call = cjson.decode(redis.call('HGET', key, string.format('call:%d.%d', number, place)) or '{}')
      if text_of(call.server) == '' then
        if turn.carried ~= 1 then add_function_call(add, own, place, text_of(call.name), text_of(call.call_id), text_of(call.arguments)) end
      elseif turn.carried ~= 1 or call.carried ~= 1 then
        after[#after + 1] = call
      end
    end
    for _, call in ipairs(after) do add_server_call(add, tail, call) end
    ends = turn.ends == 1
  end
  return ends
end

-- The items of an answer as id, JSON in turn: as `api.view.response.output_items` makes them, without log probabilities and lists of servers.
local function answer_items(key, job_id, result, turns)
  local tail, items, hosts = string.sub(job_id, 5), {}, link_hosts_field(key)
  local function add(id, kind, rest)
    items[#items + 1] = id
    items[#items + 1] = '{"id":"' .. id .. '","type":"' .. kind .. '",' .. hosts .. rest .. '}'
  end
  if turns and add_turns(add, key, tail, turns) then return items end
  local choice = table_of(table_of(table_of(cjson.decode(result)).choices)[1])
  local message = table_of(choice.message)
  local own = turns and string.format('%s_%d', tail, turns + 1) or tail
  add_message(add, own, message, choice.finish_reason == 'length' or choice.finish_reason == 'content_filter')
  for n, each in ipairs(table_of(message.tool_calls)) do
    local call = table_of(each)
    local named = table_of(call['function'])
    add_function_call(add, own, n - 1, text_of(named.name), text_of(call.id), text_of(named.arguments))
  end
  return items
end

-- Take a conversation for one job, so that no two add to it at once; `seq` is the number that it was read at, '' for any. Gives nothing, or
-- why not. A job that has it and has ended, or is gone, is no obstacle.
local function begin_turn(conversation, job_id, seq)
  local held = redis.call('HMGET', conversation, 'tenant', 'seq', 'job')
  if not held[1] then return 'gone' end
  if held[3] and held[3] ~= job_id then
    local state = redis.call('HGET', 'torpor:{' .. held[3] .. '}', 'state')
    if state == 'queued' or state == 'in_progress' then return 'locked' end
  end
  if seq ~= '' and seq ~= held[2] then return 'moved' end
  redis.call('HSET', conversation, 'job', job_id)
  keep_conversation(conversation)
end

-- Let the conversation of a job go, and put what an answered job was asked and answered at its end. Called before the job's state
-- changes: when a power cut keeps only the first half of a script (Redis 7.0 can do that), the job ends again and adds what is missing.
local function end_turn(key, job_id, conversation_id, state, result, turns)
  local conversation = 'torpor:{' .. conversation_id .. '}'
  if redis.call('HGET', conversation, 'job') ~= job_id then return end -- deleted meanwhile
  if state == 'completed' or state == 'incomplete' then
    local items = cjson.decode(redis.call('HGET', key, 'turn') or '[]')
    if result then
      for _, each in ipairs(answer_items(key, job_id, result, turns)) do items[#items + 1] = each end
    end
    append_items(conversation, items)
    redis.call('HDEL', key, 'turn')
  end
  redis.call('HDEL', conversation, 'job')
end
