-- Compare and append. KEYS: the stream's shards that are written, checkpoints, and where the number
-- of shards is recorded.
-- ARGV: number of streams, field of a body, mode, number of shards, the groups, the appends. An append has the
-- index of its checkpoint in KEYS (0: none), 1 where it is only to catch up, moves (slot, from,
-- to; '' for none) and runs of events.
-- Modes: 'exact' (each step starts at what is stored), 'dry' (the same, but nothing is written),
-- 'any' (a shard beside the one that decides: it may be past the step, or within it).
-- Answers a letter for each append: d(urable), p(ast: what is stored is beyond where it starts) or
-- r(ewound); or '#' and how many shards there are, where that is another number. Nothing is written for an append that does not fit; nothing can fail once something
-- is.
local streams, field, mode = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local at = 5
local function next()
  local arg = ARGV[at]
  at = at + 1
  return arg
end

-- invariant: one-number-of-shards
local recorded = redis.call('GET', KEYS[#KEYS])
if recorded and recorded ~= ARGV[4] then return '#' .. recorded end
for i = 1, #KEYS - 1 do
  local key = KEYS[i]
  local kind, wanted = redis.call('TYPE', key).ok, i <= streams and 'stream' or 'hash'
  if kind ~= 'none' and kind ~= wanted then
    return redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. kind)
  end
end

-- The server has lost what it had.
if not recorded and mode ~= 'dry' then redis.call('SET', KEYS[#KEYS], ARGV[4]) end

-- Where the stream is not there, what comes now must not be missed by a group.
local groups = tonumber(next())
for i = 1, streams do
  if groups > 0 and redis.call('EXISTS', KEYS[i]) == 0 then
    for group = at, at + groups - 1 do
      redis.call('XGROUP', 'CREATE', KEYS[i], ARGV[group], '0', 'MKSTREAM')
    end
  end
end
at = at + groups

-- Positions are "ORDER NOTE"; orders are compared as text, for they have 64 bits.
local function before(one, other)
  one, other = string.match(one, '^%d*'), string.match(other, '^%d*')
  return #one < #other or (#one == #other and one < other)
end

-- 'd' where the step is to be done, 'p' where it is past, 'r' where it starts beyond what is
-- stored.
local function compare(stored, from, to, catch_up)
  if stored == from then return 'd' end
  if stored == to then return 'p' end
  if stored == '' or (from ~= '' and before(stored, from)) then return 'r' end
  if to == '' then return 'r' end
  local within = before(stored, to)
  return within and mode == 'any' and not catch_up and 'd' or 'p'
end

-- Where slots will be, as far as a dry run has come.
local dry = {}

local function decide(checkpoint, moves, catch_up)
  local verdict, now = #moves == 0 and 'd' or 'p', {}
  for _, move in ipairs(moves) do
    local name = (checkpoint or '') .. ' ' .. move[1]
    local stored = now[name] or dry[name] or redis.call('HGET', checkpoint, move[1]) or ''
    local one = compare(stored, move[2], move[3], catch_up)
    if one == 'r' or (one == 'p' and mode ~= 'any') then return one end
    if one == 'd' then
      verdict = 'd'
      move.stored, now[name] = stored, move[3]
    end
  end
  if mode == 'dry' and verdict == 'd' then
    for name, position in pairs(now) do dry[name] = position end
  end
  return verdict
end

local function pass(runs)
  for _ = 1, runs do
    local stream, form, source, count = next(), next(), next(), tonumber(next())
    if form == 'p' then
      at = at + 3 * count
    else
      for _ = 1, count do
        local args = tonumber(next())
        at = at + args
      end
    end
  end
end

local function add(runs)
  local call = redis.call
  for _ = 1, runs do
    local stream, form, source, count = KEYS[tonumber(next())], next(), next(), tonumber(next())
    if form == 'p' then
      for i = at, at + 3 * count - 1, 3 do
        call('XADD', stream, '*', '_id', ARGV[i], '_source', source, '_time', ARGV[i + 1],
          field, ARGV[i + 2])
      end
      at = at + 3 * count
    else
      for _ = 1, count do
        local args = tonumber(next())
        call('XADD', stream, '*', unpack(ARGV, at, at + args - 1))
        at = at + args
      end
    end
  end
end

local answers = {}
for append = 1, tonumber(next()) do
  local checkpoint, catch_up, moves = KEYS[tonumber(next())], next() == '1', {}
  for i = 1, tonumber(next()) do
    moves[i] = { next(), next(), next() }
  end
  local runs = tonumber(next())
  local verdict = decide(checkpoint, moves, catch_up)
  if verdict == 'd' and mode ~= 'dry' then
    -- What could refuse the last write (a permission, memory) refuses this one, which changes
    -- nothing.
    for _, move in ipairs(moves) do
      if move.stored then redis.call('HSET', checkpoint, move[1], move.stored) end
    end
    add(runs)
    for _, move in ipairs(moves) do
      if move.stored and move[3] == '' then
        redis.call('HDEL', checkpoint, move[1])
      elseif move.stored then
        redis.call('HSET', checkpoint, move[1], move[3])
      end
    end
  else
    pass(runs)
  end
  answers[append] = verdict
end
return table.concat(answers)
