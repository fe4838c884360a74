-- One look of an ordered group's member at a shard: it says that it lives, keeps the shard if it
-- is its own, and does what it wants to.
-- KEYS: a shard, its owner, the members that live, what its cursor is known by. ARGV: what (look,
-- keep, claim, give, leave), group, member, the lease in milliseconds, the consumer that holds what
-- nobody has, how many events to take, how many it may hold of the shard before it takes more, a
-- new name for the shard's ownerships, what the member knows the cursor by, the epoch that it owns
-- the shard under as far as it knows, or 0.
-- Answers: the owner's epoch where that is the member (otherwise 0), the name, whether the shard
-- is free, who lives, entries, their delivery counts (this delivery included).
local key, owner, living = KEYS[1], KEYS[2], KEYS[3]
local what, group, me, lease, free = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local most, room, STEP = tonumber(ARGV[6]), tonumber(ARGV[7]), 1000
local time = redis.call('TIME')
local us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now = math.floor(us / 1000)

-- Where the cursor was moved since, an entry may be the member's anew: by its id alone nobody can
-- tell. The member begins anew.
if what ~= 'leave' and (redis.call('GET', KEYS[4]) or '') ~= ARGV[9] then
  return redis.error_reply('CURSOR the cursor of the group was moved')
end
-- An error before anything is written: the group may not be there.
local holds = {}
for _, holder in ipairs(redis.call('XPENDING', key, group)[4] or {}) do
  holds[holder[1]] = tonumber(holder[2])
end

local function number(value) return string.format('%.0f', value) end
local had = redis.call('HMGET', owner, 'member', 'epoch', 'until', 'id')
local member, epoch, till = had[1], tonumber(had[2] or 0), tonumber(had[3] or 0)

-- Nothing is written that is nearly as it should be: a member looks many times a second.
if what == 'leave' then
  redis.call('ZREM', living, me)
elseif math.abs(now - tonumber(redis.call('ZSCORE', living, me) or 0)) > math.min(lease / 4, 1000) then
  redis.call('ZADD', living, now, me)
  -- Twice that long, as who lives is a matter of the asker's own lease.
  redis.call('ZREMRANGEBYSCORE', living, '-inf', number(now - 2 * lease))
end

local function pending_of(consumer, count)
  return redis.call('XPENDING', key, group, '-', '+', count, consumer)
end

-- What anybody but `keeper` holds is nobody's from now on.
local function free_all(keeper)
  local start = '-'
  while true do
    local some = redis.call('XPENDING', key, group, start, '+', STEP)
    local by_count = {}
    for _, one in ipairs(some) do
      if one[2] ~= free and one[2] ~= keeper then
        local list = by_count[one[4]] or {}
        by_count[one[4]], list[#list + 1] = list, one[1]
      end
    end
    for count, list in pairs(by_count) do
      local args = list
      for _, arg in ipairs({ 'TIME', 0, 'RETRYCOUNT', count, 'JUSTID' }) do args[#args + 1] = arg end
      redis.call('XCLAIM', key, group, free, 0, unpack(args))
    end
    if #some < STEP then break end
    start = '(' .. some[#some][1]
  end
end

-- Under another epoch than it knows of, what has the member's name is not its own: one of its
-- lives, or an answer that was lost, claimed it. It claims it anew.
local same = member == me and till > 0
local mine = same and epoch == tonumber(ARGV[10])
if mine and what == 'give' and #pending_of(me, 1) == 0 then what = 'leave' end
if what == 'leave' and (mine or (same and ARGV[10] == '0')) then
  redis.call('HSET', owner, 'member', '', 'until', 0)
  same, mine, till = false, false, 0
elseif mine then
  if math.abs(now + lease - till) > lease / 4 then
    redis.call('HSET', owner, 'until', number(now + lease))
  end
elseif what == 'claim' and (same or till <= now) then
  -- Above what it ever was, also where the server has an older copy of itself.
  -- invariant: no-store-by-a-fenced-owner
  epoch = math.max(epoch + 1, us)
  redis.call('HSETNX', owner, 'id', ARGV[8])
  redis.call('HSET', owner, 'member', me, 'epoch', number(epoch), 'until', number(now + lease))
  -- invariant: one-owner, in-order
  free_all()
  holds, mine = { [free] = most }, true
end
-- A read of a member that goes by no order looks at the mode only afterwards. One that was silent
-- for too long may have taken what comes next here: it is not to be passed over.
for holder in pairs(mine and holds or {}) do
  if holder ~= me and holder ~= free then
    free_all(me)
    holds[free] = most
    break
  end
end

local entries, counts = {}, {}
if mine and most > 0 and what ~= 'give' and (holds[me] or 0) < room then
  local left = holds[free] and pending_of(free, most) or {}
  if #left > 0 then
    local ids, known = {}, {}
    for n, one in ipairs(left) do ids[n], known[one[1]] = one[1], one[4] + 1 end
    for _, entry in ipairs(redis.call('XCLAIM', key, group, me, 0, unpack(ids))) do
      if entry and entry[2] then
        local id, count = entry[1], known[entry[1]]
        known[id] = nil
        if count % 1000 == 0 then
          -- The lower half of the count is full.
          count = count - 1
          redis.call('XCLAIM', key, group, me, 0, id, 'RETRYCOUNT', count, 'JUSTID')
        end
        entries[#entries + 1], counts[#counts + 1] = entry, count
      end
    end
    -- Before version 7, what was deleted from the stream stays in the pending list.
    for id in pairs(known) do redis.call('XACK', key, group, id) end
  end
  if #left < most then
    local read = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', most - #left, 'STREAMS', key, '>')
    for _, entry in ipairs(read and read[1] and read[1][2] or {}) do
      entries[#entries + 1], counts[#counts + 1] = entry, 1
    end
  end
end
local id = redis.call('HGET', owner, 'id') or ''
local names = redis.call('ZRANGEBYSCORE', living, '(' .. number(now - lease), '+inf')
local open = (not mine and (same or till <= now)) and 1 or 0
return { mine and number(epoch) or '0', id, open, names, entries, counts }
