-- Length and groups of a shard, at one moment. KEYS: the shard. ARGV: 'consumers' for these too.
-- Answers the length, then for each group: name, pending, lag or nil, consumers (name, pending,
-- idle), and with these the oldest entry that is not acked, if there is one.
local key = KEYS[1]
if redis.call('TYPE', key).ok ~= 'stream' then return { 0, {} } end
local function read(list)
  local info = {}
  for i = 1, #list, 2 do info[list[i]] = list[i + 1] end
  return info
end
local length = redis.call('XLEN', key)
local newest = read(redis.call('XINFO', 'STREAM', key))['last-generated-id']
local groups = {}
for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local info, consumers, oldest = read(group), {}, false
  if ARGV[1] == 'consumers' then
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', key, info.name)) do
      local one = read(consumer)
      consumers[#consumers + 1] = { one.name, one.pending, one.idle }
    end
    -- What was handed out came before what was not.
    oldest = info.pending > 0 and redis.call('XPENDING', key, info.name)[2] or false
    if not oldest and info['last-delivered-id'] ~= newest then
      local after = '(' .. info['last-delivered-id']
      local next = redis.call('XRANGE', key, after, '+', 'COUNT', 1)[1]
      oldest = next and next[1] or false
    end
  end
  -- Redis counts what a group has read, and loses count over restarts: a group that is at the end
  -- has no lag, and nothing that is not there is yet to be read.
  local lag = info.lag or false
  if info['last-delivered-id'] == newest then lag = 0 end
  if lag and lag > length then lag = length end
  groups[#groups + 1] = { info.name, info.pending, lag, consumers, oldest }
end
return { length, groups }
