-- A lock's record outlives the lease, so that fences grow over a clock that is set back.
local fence_memory = 3600000
-- So long nobody has to prolong that.
local fence_slack = 900000
local free, held = 0, 1
-- Marks: somebody may wait.
local queued = 1
