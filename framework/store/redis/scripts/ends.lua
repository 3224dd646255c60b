-- KEYS: for all, the claim. ARGV: channels; then, for all that share them, how many, keep, 1 where the ending is the common
-- one, 1 where what stands in a record behind its owner is said; and for each the owner with its length in front, the rest of
-- its record where that is said, and the ending where it is another.
local answers, a, k = {}, 2, 0
local read = reader(1, #KEYS)
while ARGV[a] do
  local count, keep, is_common, is_whole = ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2] == '1', ARGV[a + 3] == '1'
  a = a + 4
  for _ = 1, count do
    k = k + 1
    local rest = a + (is_whole and 1 or 0)
    local ending = rest + (is_common and 0 or 1)
    answers[k] = finish(KEYS[k], read(k), ARGV[a], is_whole and ARGV[rest], is_common and 'c' or ARGV[ending], keep, ARGV[1])
    a = ending + 1
  end
end
return alike(answers)
