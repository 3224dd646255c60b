-- KEYS: for each, the claim, the lock, its queue, its beats. ARGV as of ends, and for each its lock's owner with its length.
local answers, a, k = {}, 2, 1
while ARGV[a] do
  local count, keep = ARGV[a], tonumber(ARGV[a + 1])
  a = a + 2
  for _ = 1, count do
    answers[#answers + 1] = finish(KEYS[k], ARGV[a], ARGV[a + 1], ARGV[a + 2], keep, ARGV[1])
    release(KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], ARGV[a + 3], ARGV[1])
    k, a = k + 4, a + 4
  end
end
return answers
