-- KEYS: for all, the claim; then for all, the lock. ARGV as of ends, and for each its lock's owner with its length in front of
-- all of its own.
local answers, a, k, locks = {}, 2, 0, #KEYS / 2
local read = reader(1, #KEYS)
while ARGV[a] do
  local count, keep, is_common, is_whole = ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2] == '1', ARGV[a + 3] == '1'
  a = a + 4
  for _ = 1, count do
    k = k + 1
    release(KEYS[locks + k], read(locks + k), ARGV[a], ARGV[1])
    a = a + 1
    local rest = a + (is_whole and 1 or 0)
    local ending = rest + (is_common and 0 or 1)
    answers[k] = finish(KEYS[k], read(k), ARGV[a], is_whole and ARGV[rest], is_common and 'c' or ARGV[ending], keep, ARGV[1])
    a = ending + 1
  end
end
return alike(answers)
