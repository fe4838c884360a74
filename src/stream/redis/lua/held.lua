-- Does something with those of a member's entries that are still its own.
-- KEYS: a shard, what its cursor is known by. ARGV: what (ack, renew, release, charge),
-- group, member, more, what the member knows the cursor by; then ids, ascending.
local key, what, group, me, more = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local STEP, IDS = 1000, 6

-- Where the cursor was moved since, an entry may be the member's anew: by its id alone nobody can
-- tell.
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[5] then
  if what == 'release' then return end
  return redis.error_reply('CURSOR the cursor of the group was moved')
end

-- The member's entries among those asked about, with their delivery counts.
-- invariant: only-the-holder-acks
local function held(first, last)
  local mine, start = {}, first
  while true do
    local some = redis.call('XPENDING', key, group, start, last, STEP, me)
    for _, one in ipairs(some) do mine[one[1]] = one[4] end
    if #some < STEP then return mine end
    start = '(' .. some[#some][1]
  end
end

local function hand_back(ids)
  -- Entries of one count in one command. 0 is the longest silence there can be.
  local by_count = {}
  for id, count in pairs(ids) do
    local list = by_count[count] or {}
    by_count[count], list[#list + 1] = list, id
  end
  for count, list in pairs(by_count) do
    local left = count % 1000 > 0 and count - 1 or count
    for i = 1, #list, STEP do
      local args = { unpack(list, i, math.min(i + STEP - 1, #list)) }
      for _, arg in ipairs({ 'TIME', 0, 'RETRYCOUNT', left, 'JUSTID' }) do
        args[#args + 1] = arg
      end
      redis.call('XCLAIM', key, group, more, 0, unpack(args))
    end
  end
end

local mine = held(ARGV[IDS], ARGV[#ARGV])
if what == 'charge' then
  local id, count = ARGV[IDS], mine[ARGV[IDS]]
  if not count then return false end
  count = math.max(count + 1000 * tonumber(more), count % 1000)
  redis.call('XCLAIM', key, group, me, 0, id, 'RETRYCOUNT', count, 'JUSTID')
  return math.floor(count / 1000)
end

if what == 'release' then
  local asked = {}
  for i = IDS, #ARGV do asked[ARGV[i]] = mine[ARGV[i]] end
  return hand_back(asked)
end

-- ack, renew. Answers what is not the member's, and what nobody can have any more.
local ids, lost, gone = {}, {}, {}
for i = IDS, #ARGV do
  if mine[ARGV[i]] then ids[#ids + 1] = ARGV[i] else lost[#lost + 1] = ARGV[i] end
end
for i = 1, #ids, STEP do
  local last = math.min(i + STEP - 1, #ids)
  if what == 'ack' then
    redis.call('XACK', key, group, unpack(ids, i, last))
  else
    local args = { unpack(ids, i, last) }
    args[#args + 1] = 'JUSTID'
    local kept = {}
    for _, id in ipairs(redis.call('XCLAIM', key, group, me, 0, unpack(args))) do
      kept[id] = true
    end
    for n = i, last do
      if not kept[ids[n]] then gone[#gone + 1] = ids[n] end
    end
  end
end
return { lost, gone }
