-- Files an entry as a dead letter and acks it, where it is still the member's.
-- KEYS: a shard, its dead letters. ARGV: group, member, id, field, the letter up to the number of
-- attempts, and what follows that.
local one = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not one or one[2] ~= ARGV[2] then return 0 end
local letter = ARGV[5] .. math.floor(one[4] / 1000) .. ARGV[6]
redis.call('HSET', KEYS[2], ARGV[4], letter)
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return 1
