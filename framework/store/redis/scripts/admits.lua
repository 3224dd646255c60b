-- KEYS: for all, the claim; then for all, the lock. ARGV: the largest fence that was seen; then, for all that share them, how
-- many, lease, keep, force and waits of the claim, lease, fair and waits of the lock; and for each what is behind the head of
-- its claim, and what is behind that of its lock.
local fence = math.max(now_us, ARGV[1] + 1)
local answers, a, k, count = {}, 2, 0, #KEYS / 2
local read = reader(count + 1, #KEYS)
while ARGV[a] do
  local lease, force, waits = tonumber(ARGV[a + 1]), ARGV[a + 3] == '1', ARGV[a + 4] == '1'
  local lock_lease, fair, lock_waits = tonumber(ARGV[a + 5]), ARGV[a + 6] == '1', ARGV[a + 7] == '1'
  local kept = kept_for(tonumber(ARGV[a + 2]), lease)
  local digits = whole(kept)
  local fresh = head(running, 0, now + lease, fence, now + kept)
  local last = a + 7 + 2 * ARGV[a]
  for tail = a + 8, last, 2 do
    k = k + 1
    local claimed = claim(KEYS[k], fresh, ARGV[tail], fence, lease, kept, digits, force, waits)
    local locked = is_granted(claimed) and
      acquire(KEYS[count + k], read(count + k), ARGV[tail + 1], fence, lock_lease, fair, lock_waits)
    -- Mostly both have one fence.
    answers[k] = claimed == locked and claimed or {claimed, locked}
  end
  a = last + 1
end
return alike(answers)
