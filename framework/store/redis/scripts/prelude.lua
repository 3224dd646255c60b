-- Stands before every script: the server's clock, the only one that leases are measured on.
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- Lua writes large numbers as 1.7e+15; Redis wants digits.
local function whole(number)
  return string.format('%.0f', number)
end
