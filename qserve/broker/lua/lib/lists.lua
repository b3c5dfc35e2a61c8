-- How lists travel. The functions that pack them are in functions.py and library.py; each list begins with the number of
-- its items. A reader takes the arguments and where its list begins, and returns the list and where the next one begins.
-- Adding 0 makes a number of a text; the broker guards global names, so that each call of `tonumber` takes longer.

local empty = {}

-- the part of a list from `first` on
local function rest(list, first)
  local found = {}
  for k = first, #list do found[#found + 1] = list[k] end
  return found
end

local function read_list(argv, at)
  if argv[at] == '0' then return empty, at + 1 end
  local items, count = {}, argv[at] + 0
  for k = 1, count do items[k] = argv[at + k] end
  return items, at + 1 + count
end

-- pairs as a table, the second of a pair by the first
local function read_pairs(argv, at)
  if argv[at] == '0' then return empty, at + 1 end
  local found, count = {}, argv[at] + 0
  for k = at + 1, at + 2 * count, 2 do found[argv[k]] = argv[k + 1] end
  return found, at + 1 + 2 * count
end

-- moves: { place, step, fields } starts a step, with the fields of its call, in which the header is still missing;
-- { place, step, needs, slots } fills slots of a join, { number, value } each. `place` is the number of the stream.
local function read_moves(argv, at)
  if argv[at] == '0' then return empty, at + 1 end
  local moves, count = {}, argv[at] + 0
  at = at + 1
  for k = 1, count do
    local place, step, needs, size = argv[at] + 0, argv[at + 1], argv[at + 2] + 0, argv[at + 3] + 0
    at = at + 4
    if needs == 0 then
      local fields = { CallField.HEADER, false, CallField.STEP, step }
      for slot = 0, size - 1 do
        fields[#fields + 1] = slot
        fields[#fields + 1] = argv[at + slot]
      end
      moves[k] = { place = place, step = step, fields = fields }
      at = at + size
    else
      local slots = {}
      for slot = 1, size do slots[slot] = { argv[at + 2 * slot - 2], argv[at + 2 * slot - 1] } end
      moves[k] = { place = place, step = step, needs = needs, slots = slots }
      at = at + 2 * size
    end
  end
  return moves, at
end

-- arguments that are other requests' results: each fills `slot` of a join
local function read_awaited(argv, at)
  if argv[at] == '0' then return empty, at + 1 end
  local found, count = {}, argv[at] + 0
  at = at + 1
  for k = 1, count do
    found[k] = {
      request = argv[at], place = argv[at + 1] + 0, step = argv[at + 2],
      needs = argv[at + 3] + 0, slot = argv[at + 4] + 0,
    }
    at = at + 5
  end
  return found, at
end
