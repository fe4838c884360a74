-- Takes what others left behind: what was handed back, then what nobody renewed for a lease.
-- KEYS: shards. ARGV: group, member, the consumer that holds what was handed back, how many, the
-- lease in milliseconds or '' not to look for such, then a cursor for each shard.
-- Answers for each shard: entries, their delivery counts (this delivery included), the cursor.
local group, me, free, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
local answer = {}
for i, key in ipairs(KEYS) do
  local room, cursor, entries, counts = tonumber(ARGV[4]), ARGV[5 + i], {}, {}
  local function take(claimed, known)
    for _, entry in ipairs(claimed) do
      local id = entry and entry[1]
      if entry and entry[2] then
        local count = known and known[id] + 1
          or redis.call('XPENDING', key, group, id, id, 1)[1][4]
        if count % 1000 == 0 then
          -- The lower half of the count is full.
          count = count - 1
          redis.call('XCLAIM', key, group, me, 0, id, 'RETRYCOUNT', count, 'JUSTID')
        end
        entries[#entries + 1], counts[#counts + 1] = entry, count
        room = room - 1
      elseif id then
        redis.call('XACK', key, group, id)
      end
    end
  end
  local pending = redis.call('XPENDING', key, group, '-', '+', room, free)
  if #pending > 0 then
    local ids, known = {}, {}
    for n, one in ipairs(pending) do
      ids[n], known[one[1]] = one[1], one[4]
    end
    local claimed = redis.call('XCLAIM', key, group, me, 0, unpack(ids))
    take(claimed, known)
    if #entries < #ids then
      -- Before version 7, what was deleted from the stream stays in the pending list.
      for _, entry in ipairs(entries) do known[entry[1]] = nil end
      for id in pairs(known) do redis.call('XACK', key, group, id) end
    end
  end
  if lease ~= '' and room > 0 then
    local claimed = redis.call('XAUTOCLAIM', key, group, me, lease, cursor, 'COUNT', room)
    cursor = claimed[1]
    take(claimed[2])
  end
  answer[i] = { entries, counts, cursor }
end
return answer
