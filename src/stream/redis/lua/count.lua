-- Counts entries, which Redis cannot do without reading them: some, not to keep others waiting.
-- KEYS: the shard. ARGV: the first, the one before which they end, how many at most.
-- Answers how many, and where to go on, or '' where there are no more.
local key, from, to, most = KEYS[1], ARGV[1], '(' .. ARGV[2], tonumber(ARGV[3])
local BYTES, count, bytes, page = 1048576, 0, 0, 4
while count < most and bytes < BYTES do
  page = math.min(page, most - count)
  local some, size = redis.call('XRANGE', key, from, to, 'COUNT', page), 0
  count = count + #some
  if #some < page then return { count, '' } end
  for _, value in ipairs(some[#some][2]) do size = size + #value + 32 end
  bytes = bytes + size * #some
  page = math.max(4, math.min(1000, math.floor(BYTES / 8 / size)))
  from = '(' .. some[#some][1]
end
return { count, from }
