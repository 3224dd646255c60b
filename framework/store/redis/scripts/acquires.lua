-- KEYS: for each, the lock, its queue, its beats. ARGV: the largest fence that was seen; then, for all that share them, how
-- many, lease, fair and waits; and for each its owner with its length, and what is behind that.
local seen = tonumber(ARGV[1])
local answers, a, k = {}, 2, 1
while ARGV[a] do
  local count, lease, fair, waits = ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2] == '1', ARGV[a + 3] == '1'
  a = a + 4
  for _ = 1, count do
    answers[#answers + 1] =
      acquire(KEYS[k], KEYS[k + 1], KEYS[k + 2], ARGV[a], ARGV[a + 1], seen, lease, fair, waits)
    k, a = k + 3, a + 2
  end
end
return answers
