-- Takes what others left behind: what was handed back, then what nobody renewed for a lease.
-- KEYS: the members that live; for each shard itself, and what its cursor is known by. ARGV: group,
-- member, the consumer that holds what was handed back, how many, the lease in milliseconds, 'all'
-- to look for what nobody renewed; then for each shard where to go on with that, and what the
-- member knows its cursor by.
-- Answers for each shard: entries, their delivery counts (this delivery included), where to go on.
-- invariant: all-is-stored-in-the-end
local group, me, free, lease, search = ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[6] == 'all'
local shards, answer = {}, {}
for i = 2, #KEYS, 2 do
  shards[#shards + 1] = KEYS[i]
  if (redis.call('GET', KEYS[i + 1]) or '') ~= ARGV[6 + i] then
    return redis.error_reply('CURSOR the cursor of the group was moved')
  end
end
for i, key in ipairs(shards) do
  local room, cursor, entries, counts = tonumber(ARGV[4]), ARGV[5 + 2 * i], {}, {}
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
  if search and room > 0 then
    local claimed = redis.call('XAUTOCLAIM', key, group, me, lease, cursor, 'COUNT', room)
    cursor = claimed[1]
    take(claimed[2])
  end
  answer[i] = { entries, counts, cursor }
end
if search then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  -- Nothing is written that is nearly as it should be: a member looks several times a second.
  local seen, every = tonumber(redis.call('ZSCORE', KEYS[1], me) or 0), tonumber(lease) / 4
  if math.abs(now - seen) > math.min(every, 1000) then
    redis.call('ZADD', KEYS[1], now, me)
    -- Twice that long, as who lives is a matter of the asker's own lease.
    local gone = string.format('%.0f', now - 2 * tonumber(lease))
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', gone)
  end
end
return answer
