-- Acks entries that certainly were the member's, unless the group's cursor was moved since.
-- KEYS: a shard, what its cursor is known by. ARGV: group, what the member knows it by; then ids.
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then
  return redis.error_reply('CURSOR the cursor of the group was moved')
end
return redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3))
