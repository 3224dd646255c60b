-- KEYS: for all, the claim. ARGV: channels; then, for all that share them, how many, keep, how long the owner is with its length
-- in front, 1 where the ending is the common one; and for each what is behind the head of its record where that is gone, its
-- owner first, and the ending where it is another.
local answers, a, k = {}, 2, 0
local read = reader(1, #KEYS)
while ARGV[a] do
  local count, keep, who_bytes, is_common = ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2], ARGV[a + 3] == '1'
  a = a + 4
  for _ = 1, count do
    k = k + 1
    answers[k] = finish(KEYS[k], read(k), ARGV[a], who_bytes, is_common and 'c' or ARGV[a + 1], keep, ARGV[1])
    a = a + (is_common and 1 or 2)
  end
end
return answers
