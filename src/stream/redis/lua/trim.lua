-- Drops what every group, another program's too, has acked. KEYS: a shard. ARGV: an age in
-- milliseconds or '' for all of it, how many at most (0: only see to the groups), then the groups that are to be there.
-- Answers how many were dropped, or -1 where groups had to be created anew.
local key, age, most = KEYS[1], ARGV[1], ARGV[2]
if redis.call('TYPE', key).ok ~= 'stream' then return 0 end
local groups, there = redis.call('XINFO', 'GROUPS', key), {}
for _, group in ipairs(groups) do there[group[2]] = true end
local missing = false
for i = 3, #ARGV do
  if not there[ARGV[i]] then
    redis.call('XGROUP', 'CREATE', key, ARGV[i], '0')
    missing = true
  end
end
if missing then return -1 end
if most == '0' or (#groups == 0 and age == '') then return 0 end

-- The numbers have 64 bits: they are compared as text.
local function before(one, other)
  local a, b = string.match(one, '^(%d+)-(%d+)$')
  local c, d = string.match(other, '^(%d+)-(%d+)$')
  local function less(x, y) return #x < #y or (#x == #y and x < y) end
  return less(a, c) or (a == c and less(b, d))
end

-- The id right behind one.
local function behind(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  local digits = {}
  for digit in string.gmatch(seq, '%d') do digits[#digits + 1] = tonumber(digit) end
  for i = #digits, 1, -1 do
    digits[i] = (digits[i] + 1) % 10
    if digits[i] > 0 then return ms .. '-' .. table.concat(digits) end
  end
  return ms .. '-1' .. table.concat(digits)
end

-- The lowest that a group has not acked.
-- invariant: no-event-lost
local low
local function needs(id)
  if not low or before(id, low) then low = id end
end
for _, group in ipairs(groups) do
  local info = {}
  for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
  if info.pending > 0 then
    needs(redis.call('XPENDING', key, info.name)[2])
  else
    needs(behind(info['last-delivered-id']))
  end
end
if age ~= '' then
  local now = redis.call('TIME')
  local ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) - tonumber(age)
  needs(string.format('%.0f', math.max(ms, 0)) .. '-0')
end
local dropped = redis.call('XTRIM', key, 'MINID', '~', low, 'LIMIT', most)
if dropped == 0 then
  -- What is left to drop is less than one of the nodes that Redis keeps entries in.
  dropped = redis.call('XTRIM', key, 'MINID', low)
end
return dropped
