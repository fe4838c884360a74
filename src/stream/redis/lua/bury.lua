-- Files an entry as a dead letter and acks it, where it is still the member's.
-- KEYS: a shard, its dead letters, what its cursor is known by. ARGV: group, member, id, field, the
-- letter up to the number of attempts, what follows that, what the member knows the cursor by.
if (redis.call('GET', KEYS[3]) or '') ~= ARGV[7] then
  return redis.error_reply('CURSOR the cursor of the group was moved')
end
local one = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not one or one[2] ~= ARGV[2] then return 0 end
local letter = ARGV[5] .. math.floor(one[4] / 1000) .. ARGV[6]
redis.call('HSET', KEYS[2], ARGV[4], letter)
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return 1
