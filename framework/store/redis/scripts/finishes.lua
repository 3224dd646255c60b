-- KEYS: for all, the claim; then for all, the lock. ARGV as of ends, and for each its lock's owner with its length in front of
-- the ending.
local answers, a, k, locks = {}, 2, 0, #KEYS / 2
local read = reader(1, #KEYS)
while ARGV[a] do
  local count, keep, who_bytes, is_common = ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2], ARGV[a + 3] == '1'
  a = a + 4
  for _ = 1, count do
    k = k + 1
    answers[k] = finish(KEYS[k], read(k), ARGV[a], who_bytes, is_common and 'c' or ARGV[a + 2], keep, ARGV[1])
    release(KEYS[locks + k], read(locks + k), ARGV[a + 1], ARGV[1])
    a = a + (is_common and 2 or 3)
  end
end
return answers
