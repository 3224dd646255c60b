-- Stands before every script: the server's clock, the only one that leases are measured on.
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- Lua writes large numbers as 1.7e+15; Redis wants digits.
local function whole(number)
  return string.format('%.0f', number)
end

-- Numbers among a command's arguments stand in quotes for the same reason: Redis writes each with 17 digits.

-- Records are strings, because one that is read and written whole costs a third of a hash. Each begins with its state,
-- its marks, when it ends, its fence, when Redis forgets it, and its owner behind the owner's length: `who`.
local head_layout, head_bytes = '>BBddd', 26

local function is_of(record, who)
  return string.find(record, who, head_bytes + 1, true) == head_bytes + 1
end

local function head(...)
  return struct.pack(head_layout, ...)
end

-- What all are answered alike is said once, as a number: a reply of its own costs each 3,000 instructions.
local function alike(answers)
  local first = answers[1]
  for k = 2, #answers do
    if answers[k] ~= first then return answers end
  end
  return type(first) == 'number' and first or answers
end

-- What is at these keys, asked for together: half of what a `GET` for each costs. A key that comes a second time is read
-- again. Of what is no string it says, as of nothing, `false`: whoever is about to write there asks with `GET`.
local function reader(first, last)
  local known, is_read = redis.call('MGET', unpack(KEYS, first, last)), {}
  return function(k)
    local key = KEYS[k]
    if is_read[key] then return redis.call('GET', key) end
    is_read[key] = true
    return known[k - first + 1]
  end
end
