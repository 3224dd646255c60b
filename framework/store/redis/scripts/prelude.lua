-- Stands before every script: the server's clock, the only one that leases are measured on.
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- Lua writes large numbers as 1.7e+15; Redis wants digits.
local function whole(number)
  return string.format('%.0f', number)
end

-- Records are strings, because one that is read and written whole costs a third of a hash. Each begins with its state,
-- its marks, when it ends, its fence, when Redis forgets it, and its owner behind the owner's length: `who`.
local head_layout, head_bytes = '>BBddd', 26

local function is_of(record, who)
  return string.sub(record, head_bytes + 1, head_bytes + #who) == who
end

local function head(...)
  return struct.pack(head_layout, ...)
end
