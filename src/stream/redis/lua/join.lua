-- Begins a life of a member in a shard, if its group is of the member's mode (ordered or not), or
-- can be made so, as nobody lives that goes by the other one. What a member of this name held and
-- owned in an earlier life is free.
-- KEYS: a shard, its owner, the members that live, what its cursor is known by. ARGV: what (look:
-- changes nothing; join), group, member, '.ordered' or '', the lease in milliseconds, the consumer
-- that holds what nobody has, a new name for the cursor, '1' where members say in this shard that
-- they live.
-- What the cursor is known by ends in '.ordered' in an ordered group: with the mode it becomes
-- another one, so that whoever goes by the old mode finds it as where the cursor was moved.
-- Answers 1 and what the cursor is known by, or 0 and who lives that goes by the other mode.
local key, owner, living, cursor = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local what, group, me, mode, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local free, STEP = ARGV[6], 1000
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- An error before anything is written: the group may not be there.
redis.call('XPENDING', key, group)
local known = redis.call('GET', cursor) or ''
local owns = redis.call('HMGET', owner, 'member', 'until')
local is_other = (string.match(known, '%.ordered$') or '') ~= mode

-- The first by name: what is said of it is then the same each time.
local function other()
  local names = {}
  local since = '(' .. string.format('%.0f', now - lease)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', living, since, '+inf')) do
    if member ~= me then names[#names + 1] = member end
  end
  if owns[1] and owns[1] ~= '' and owns[1] ~= me and tonumber(owns[2] or 0) > now then
    names[#names + 1] = owns[1]
  end
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
    local one = {}
    for i = 1, #consumer, 2 do one[consumer[i]] = consumer[i + 1] end
    if one.name ~= free and one.name ~= me and one.pending > 0 and one.idle < lease then
      names[#names + 1] = one.name
    end
  end
  table.sort(names)
  return names[1]
end

if is_other then
  local name = other()
  if name then return { 0, name } end
end
if what == 'look' then return { 1, known } end

-- First of all, what anybody has by the old mode is made void.
if is_other then
  known = ARGV[7] .. mode
  redis.call('SET', cursor, known)
  redis.call('DEL', living)
end
if owns[1] and (is_other or owns[1] == me) then
  redis.call('HSET', owner, 'member', '', 'until', 0)
end
if ARGV[8] == '1' then redis.call('ZADD', living, now, me) end
-- By itself Redis knows of a member once it was given something.
redis.call('XGROUP', 'CREATECONSUMER', key, group, me)
while true do
  local some = redis.call('XPENDING', key, group, '-', '+', STEP, me)
  -- Entries of one count in one command. 0 is the longest silence there can be.
  local by_count = {}
  for _, one in ipairs(some) do
    local list = by_count[one[4]] or {}
    by_count[one[4]], list[#list + 1] = list, one[1]
  end
  for count, list in pairs(by_count) do
    for _, arg in ipairs({ 'TIME', 0, 'RETRYCOUNT', count, 'JUSTID' }) do list[#list + 1] = arg end
    redis.call('XCLAIM', key, group, free, 0, unpack(list))
  end
  if #some < STEP then break end
end
return { 1, known }
