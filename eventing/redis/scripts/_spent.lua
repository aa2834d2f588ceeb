-- Tokens and GPU time of a job, beside those of its answer.
-- USES _job

local NO_USAGE = '{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'

-- Tokens beside those of the answer: a list of `kind` (`hedged`, `retried`, `repaired`, `cascaded`, `turn`), model, and both counts; of `turn`
-- the details of both as well. An older version wrote the sum of what was thrown away.
local function spent_list(spent)
  local list = spent and cjson.decode(spent) or {}
  if list.prompt_tokens or list.completion_tokens then
    return {{kind = 'repaired', model = '', prompt_tokens = list.prompt_tokens or 0, completion_tokens = list.completion_tokens or 0}}
  end
  return list
end
-- Add the counts of one table of details to another; nothing that is no number.
local DETAILS = {'prompt_tokens_details', 'completion_tokens_details'}
local function add_details(sum, more, sign)
  for _, name in ipairs(DETAILS) do
    for detail, count in pairs(type(more[name]) == 'table' and more[name] or {}) do
      if type(sum[name]) ~= 'table' then sum[name] = {} end
      if type(count) == 'number' then sum[name][detail] = math.max(0, (tonumber(sum[name][detail]) or 0) + sign * count) end
    end
  end
end
local function add_spent(list, kind, model, prompt, completion)
  for _, each in ipairs(list) do
    if each.kind == kind and each.model == model then
      each.prompt_tokens, each.completion_tokens = each.prompt_tokens + prompt, each.completion_tokens + completion
      return each
    end
  end
  list[#list + 1] = {kind = kind, model = model, prompt_tokens = prompt, completion_tokens = completion}
  return list[#list]
end

-- A usage (JSON) with what was spent beside it, in its sums and in `extra`. `spent` may be missing.
local function usage_with(usage, spent)
  if not spent then return usage end
  local sum, extra = cjson.decode(usage), spent_list(spent)
  for _, each in ipairs(extra) do
    sum.prompt_tokens = (tonumber(sum.prompt_tokens) or 0) + each.prompt_tokens
    sum.completion_tokens = (tonumber(sum.completion_tokens) or 0) + each.completion_tokens
    sum.total_tokens = (tonumber(sum.total_tokens) or 0) + each.prompt_tokens + each.completion_tokens
    add_details(sum, each, 1)
  end
  for _, each in ipairs(type(sum.extra) == 'table' and sum.extra or {}) do
    local at = add_spent(extra, each.kind, each.model, each.prompt_tokens, each.completion_tokens)
    add_details(at, each, 1)
  end
  sum.extra = #extra > 0 and extra or nil
  return cjson.encode(sum)
end

-- What was spent when an answer of this usage, of a model, is thrown away, or asked for tools: all of it.
local function spent_with(usage, kind, model)
  local all = cjson.decode(usage or NO_USAGE)
  local list = type(all.extra) == 'table' and all.extra or {}
  local prompt, completion = tonumber(all.prompt_tokens) or 0, tonumber(all.completion_tokens) or 0
  local own = {}
  if kind == 'turn' then add_details(own, all, 1) end
  for _, each in ipairs(list) do
    prompt, completion = prompt - each.prompt_tokens, completion - each.completion_tokens
    if kind == 'turn' then add_details(own, each, -1) end
  end
  add_details(add_spent(list, kind, model, math.max(0, prompt), math.max(0, completion)), own, 1)
  return cjson.encode(list)
end

-- Put what was spent into the usage of a job that ends without having been judged.
local function with_spent(job, fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'usage' then
      fields[i + 1] = usage_with(fields[i + 1], job.spent)
      return
    end
  end
  fields[#fields + 1], fields[#fields + 2] = 'usage', usage_with(NO_USAGE, job.spent)
end

-- What a job used in the life that ends, for its entry in the stream of ends: not what an earlier one, which was redriven, was counted for.
local function used_by(job, fields)
  local usage, gpu_ms = value_in(fields, 'usage') or job.usage or '', value_in(fields, 'gpu_ms') or job.gpu_ms or 0
  if job.counted_usage and usage ~= '' then
    local now, before = cjson.decode(usage), cjson.decode(job.counted_usage)
    local rest = {}
    for _, name in ipairs({'prompt_tokens', 'completion_tokens', 'total_tokens'}) do
      rest[name] = math.max(0, (tonumber(now[name]) or 0) - (tonumber(before[name]) or 0))
    end
    usage = cjson.encode(rest)
  end
  return usage, string.format('%d', math.max(0, gpu_ms - (job.counted_gpu_ms or 0)))
end
