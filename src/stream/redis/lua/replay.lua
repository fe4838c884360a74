-- Puts a dead letter into its shard again. KEYS: the shard, its dead letters. ARGV: its field, its
-- group, what XADD is given. Answers 1, 0 where it is gone, or -1 where the group is.
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return 0 end
local groups = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('XINFO', 'GROUPS', KEYS[1]) or {}
for _, group in ipairs(groups) do
  if group[2] == ARGV[2] then
    redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
    redis.call('HDEL', KEYS[2], ARGV[1])
    return 1
  end
end
return -1
