-- One lock that nobody waits for: what release.lua does with it, without anything that it does not need. KEYS: the lock. ARGV:
-- its owner with its length. Nothing, and nothing is done, where it is not as simple as that.
local known = redis.call('GET', KEYS[1])
local state, marks = string.byte(known or '', 1, 2)
if state ~= held or marks ~= 0 or string.find(known, ARGV[1], 27, true) ~= 27 then return false end
local ends, _, forgotten = struct.unpack('>ddd', known, 3)
-- The time of day costs three times as much as how long the record is kept.
local now = forgotten - redis.call('PTTL', KEYS[1])
redis.call('SETRANGE', KEYS[1], '0', string.char(free))
return ends - now > 0 and 1 or 0
