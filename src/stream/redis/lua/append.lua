-- Compare and append. KEYS: the stream's shards that are written, then checkpoints.
-- ARGV: number of streams, field of a body, mode, the groups, the appends. An append has the
-- index of its checkpoint in KEYS (0: none), moves (slot, from, to; '' for none) and runs of
-- events. Answers a letter for each append: d(urable), r(ewound) or s(kipped: it was done before).
-- Nothing is written for an append that does not fit; nothing can fail once something is.
local streams, field, exact = tonumber(ARGV[1]), ARGV[2], ARGV[3] == 'exact'
local at = 4
local function next()
  local arg = ARGV[at]
  at = at + 1
  return arg
end

for i, key in ipairs(KEYS) do
  local kind, wanted = redis.call('TYPE', key).ok, i <= streams and 'stream' or 'hash'
  if kind ~= 'none' and kind ~= wanted then
    return redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. kind)
  end
end

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

-- 'do' it, 'skip' it as done, or 'no'.
local function compare(stored, from, to)
  if stored == from then return 'do' end
  if exact then return 'no' end
  if stored == to then return 'skip' end
  if stored == '' or to == '' then return 'no' end
  if not before(stored, to) then return 'skip' end
  return before(from, stored) and 'do' or 'no'
end

local function decide(checkpoint, moves)
  local verdict = #moves == 0 and 'do' or 'skip'
  local now = {}
  for _, move in ipairs(moves) do
    local stored = now[move[1]] or redis.call('HGET', checkpoint, move[1]) or ''
    local one = compare(stored, move[2], move[3])
    if one == 'no' then return 'no' end
    if one == 'do' then
      verdict = 'do'
      move.stored, now[move[1]] = stored, move[3]
    end
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
  local checkpoint, moves = KEYS[tonumber(next())], {}
  for i = 1, tonumber(next()) do
    moves[i] = { next(), next(), next() }
  end
  local runs = tonumber(next())
  local verdict = decide(checkpoint, moves)
  if verdict == 'do' then
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
  answers[append] = verdict == 'do' and 'd' or verdict == 'skip' and 's' or 'r'
end
return table.concat(answers)
