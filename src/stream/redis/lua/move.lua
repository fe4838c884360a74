-- Puts a group's cursor elsewhere, and takes from its members what they have of the shard.
-- KEYS: the shard, its owner, the members that live, what the cursor is known by. ARGV: what
-- (check, move), group, 'force' or '', the lease in milliseconds, the consumer that holds what
-- nobody has, the first entry to come, the id right before it, how many entries there were up to
-- that or '', the last delivered entry that is expected or '', a new name for the cursor.
-- Answers: none (no such group), runs and who, gone (not within what there is), other (another was
-- delivered last), or done and how many pending entries stood before the first to come.
local key, owner, living, known = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local what, group, force, lease, free = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local first, behind, read_by, expected, name = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local STEP = 1000

-- The numbers have 64 bits: they are compared as text.
local function before(one, other)
  local a, b = string.match(one, '^(%d+)-(%d+)$')
  local c, d = string.match(other, '^(%d+)-(%d+)$')
  local function less(x, y) return #x < #y or (#x == #y and x < y) end
  return less(a, c) or (a == c and less(b, d))
end
local function read(list)
  local info = {}
  for i = 1, #list, 2 do info[list[i]] = list[i + 1] end
  return info
end

local info
if redis.call('TYPE', key).ok == 'stream' then
  for _, one in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    one = read(one)
    if one.name == group then info = one end
  end
end
if not info then return { 'none' } end

if force == '' then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local runs, names = {}, {}
  local since = '(' .. string.format('%.0f', now - lease)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', living, since, '+inf')) do
    runs[member] = true
  end
  local owns = redis.call('HMGET', owner, 'member', 'until')
  if owns[1] and owns[1] ~= '' and tonumber(owns[2] or 0) > now then runs[owns[1]] = true end
  -- Another program's.
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
    consumer = read(consumer)
    if consumer.name ~= free and consumer.pending > 0 and consumer.idle < lease then
      runs[consumer.name] = true
    end
  end
  for member in pairs(runs) do names[#names + 1] = member end
  table.sort(names)
  if #names > 0 then return { 'runs', names } end
end

local newest = read(redis.call('XINFO', 'STREAM', key))['last-generated-id']
local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
if behind ~= newest and (not oldest or before(first, oldest[1]) or before(newest, behind)) then
  return { 'gone' }
end
if expected ~= '' and expected ~= info['last-delivered-id'] then return { 'other' } end
if what == 'check' then return { 'done', 0 } end

-- A script that fails half way keeps what it did. So first what anybody holds is made void, then
-- the group goes there, and only then what is pending is dropped. An ordered group remains one.
local mode = string.match(redis.call('GET', known) or '', '%.ordered$') or ''
redis.call('SET', known, name .. mode)
if redis.call('EXISTS', owner) == 1 then redis.call('HSET', owner, 'member', '', 'until', 0) end
-- Before version 7 nobody counts what a group has read.
local set = read_by ~= ''
  and redis.pcall('XGROUP', 'SETID', key, group, behind, 'ENTRIESREAD', read_by)
if not set or set.err then redis.call('XGROUP', 'SETID', key, group, behind) end
local passed = 0
while true do
  local some, ids = redis.call('XPENDING', key, group, '-', '+', STEP), {}
  for n, one in ipairs(some) do
    ids[n] = one[1]
    if before(one[1], first) then passed = passed + 1 end
  end
  if #ids > 0 then redis.call('XACK', key, group, unpack(ids)) end
  if #ids < STEP then break end
end
return { 'done', passed }
