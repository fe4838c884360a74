-- Length and groups of a shard, at one moment. KEYS: the shard. ARGV: 'consumers' for these too.
-- Answers the length, then for each group: name, pending, lag or nil, and consumers (name,
-- pending, idle).
local key = KEYS[1]
if redis.call('TYPE', key).ok ~= 'stream' then return { 0, {} } end
local function read(list)
  local info = {}
  for i = 1, #list, 2 do info[list[i]] = list[i + 1] end
  return info
end
local groups = {}
for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local info, consumers = read(group), {}
  if ARGV[1] == 'consumers' then
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', key, info.name)) do
      local one = read(consumer)
      consumers[#consumers + 1] = { one.name, one.pending, one.idle }
    end
  end
  groups[#groups + 1] = { info.name, info.pending, info.lag or false, consumers }
end
return { redis.call('XLEN', key), groups }
