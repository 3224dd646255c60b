-- KEYS: for all, the lock; then the queue of each, then its beats. ARGV: the largest fence that was seen; then, for all that
-- share them, how many, lease, fair and waits; and for each what is behind the head of its record.
local least = math.max(now_us, ARGV[1] + 1)
local answers, a, k = {}, 2, 0
local read = reader(1, #KEYS / 3)
while ARGV[a] do
  local lease, fair, waits = tonumber(ARGV[a + 1]), ARGV[a + 2] == '1', ARGV[a + 3] == '1'
  local last = a + 3 + ARGV[a]
  for tail = a + 4, last do
    k = k + 1
    answers[k] = acquire(KEYS[k], read(k), ARGV[tail], least, lease, fair, waits)
  end
  a = last + 1
end
return alike(answers)
