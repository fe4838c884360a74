-- Where a group stands in a shard, at one moment. KEYS: the shard. ARGV: the group.
-- Answers nil without the group, or: the oldest entry or nil, the newest there ever was, the last
-- delivered one, the one after that or nil, how many are pending, the first of them or nil, how
-- many are yet to be delivered or nil, how many there are, how many were ever added or nil.
local key = KEYS[1]
if redis.call('TYPE', key).ok ~= 'stream' then return false end
local function read(list)
  local info = {}
  for i = 1, #list, 2 do info[list[i]] = list[i + 1] end
  return info
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local info = read(group)
  if info.name == ARGV[1] then
    local stream, at = read(redis.call('XINFO', 'STREAM', key)), info['last-delivered-id']
    local newest, length = stream['last-generated-id'], stream.length
    local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
    local next = redis.call('XRANGE', key, '(' .. at, '+', 'COUNT', 1)[1]
    local pending = info.pending > 0 and redis.call('XPENDING', key, info.name)[2] or false
    -- As in status.lua.
    local lag = info.lag or false
    if at == newest then lag = 0 end
    if lag and lag > length then lag = length end
    return {
      oldest and oldest[1] or false, newest, at, next and next[1] or false,
      info.pending, pending, lag, length, stream['entries-added'] or false
    }
  end
end
return false
