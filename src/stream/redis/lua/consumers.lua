-- Removes consumers of processes that are gone, once they hold nothing. KEYS: a shard. ARGV:
-- group, idle milliseconds, the consumer that holds what was handed back.
local removed = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local info = {}
  for i = 1, #consumer, 2 do info[consumer[i]] = consumer[i + 1] end
  -- INSTANCE/GROUP/NUMBER
  local group = string.match(info.name, '/([^/]*)/%d+$')
  if info.pending == 0 and info.idle >= tonumber(ARGV[2])
    and (group == ARGV[1] or info.name == ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], info.name)
    removed = removed + 1
  end
end
return removed
