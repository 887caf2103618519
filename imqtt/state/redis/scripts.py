"""The Lua scripts. Each handles a whole batch atomically.

A script is sent in full each time, about a kilobyte a batch, so no flush, restart or failover can invalidate
a cached script. Redis compiles each script once.
"""

from imqtt.state.base import SILENCED_MOST
from imqtt.state.redis import keys

PROBE = f"return redis.call('SET', KEYS[1], '1', 'PX', {keys.PROBE_TTL})"

# --- seen keys. ARGV: the digests, concatenated.

_EACH_DIGEST = f"""
local digests = ARGV[1]
for at = 1, #digests, {keys.SEEN_DIGEST} do
  local a, b, c = struct.unpack('<I4I4I4', digests, at)
  a, b, c = a % {keys.SEEN_BITS}, b % {keys.SEEN_BITS}, c % {keys.SEEN_BITS}
"""

# KEYS: the filters to query. Returns the indexes of the digests that are in one of them, from 0.
SEEN = f"""
local seen = {{}}
{_EACH_DIGEST}
  for _, filter in ipairs(KEYS) do
    if redis.call('GETBIT', filter, a) == 1 and redis.call('GETBIT', filter, b) == 1
        and redis.call('GETBIT', filter, c) == 1 then
      seen[#seen + 1] = (at - 1) / {keys.SEEN_DIGEST}
      break
    end
  end
end
return seen
"""

# KEYS: the filter.
MARK_SEEN = f"""
{_EACH_DIGEST}
  redis.call('SETBIT', KEYS[1], a, 1)
  redis.call('SETBIT', KEYS[1], b, 1)
  redis.call('SETBIT', KEYS[1], c, 1)
end
redis.call('PEXPIRE', KEYS[1], {keys.SEEN_TTL})
"""

# --- device lists. KEYS: `lists`, and the users' keys.

# A lease and a mark that a user was forgotten are ticks of one clock, which counts microseconds and never
# steps back while its key exists. If the key is lost, a new epoch begins, later than all leases given before.
_CLOCK = f"""
local function tick()
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local last = tonumber(redis.call('HGET', KEYS[1], 'last') or 0)
  if last == 0 then redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', now)) end
  if now <= last then now = last + 1 end
  redis.call('HSET', KEYS[1], 'last', string.format('%.0f', now))
  redis.call('PEXPIRE', KEYS[1], {keys.LISTS_TTL})
  return now
end
"""

# Returns the lease, as text.
LEASE = f"{_CLOCK} return string.format('%.0f', tick())"

# ARGV: the lease and the lists. A mark or a list of a later tick stays.
FILL = f"""
{_CLOCK}
local lease = tonumber(ARGV[1])
local now = tick()
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or now)
if lease < epoch or now - lease > {keys.LEASE_TTL} * 1000 then return end
for i = 2, #KEYS do
  local current = redis.call('GET', KEYS[i])
  if not current or (tonumber(string.sub(current, 1, 16)) or 0) <= lease then
    redis.call('SET', KEYS[i], string.format('%016.0f', lease) .. ARGV[i], 'PX', {keys.LIST_TTL})
  end
end
"""

FORGET = f"""
{_CLOCK}
local mark = string.format('%016.0f', tick())
for i = 2, #KEYS do redis.call('SET', KEYS[i], mark, 'PX', {keys.FORGOTTEN_TTL}) end
"""

# KEYS: `lists`, `forgotten`. Invalidates all lists with an earlier lease, also those that are filled later.
FORGET_ALL = f"""
{_CLOCK}
redis.call('SET', KEYS[2], string.format('%016.0f', tick()), 'PX', {keys.LIST_TTL + keys.LEASE_TTL})
"""

# --- presence. An entry is [nonce, state, since, expires]. Devices that are not offline are also in the
# sorted set, whose score is the current expiry.

# The entry, or nil if there is none or another version wrote it in another form.
_UNPACK = """
local function unpack_entry(packed)
  if not packed then return nil end
  local whole, entry = pcall(cmsgpack.unpack, packed)
  if whole and type(entry) == 'table' and type(entry[1]) == 'string' and type(entry[2]) == 'string'
      and type(entry[3]) == 'number' and type(entry[4]) == 'number' then
    return entry
  end
end
"""

# Sets the expiry of a user's hash after a change.
_KEEP = f"""
local function keep(presence, expiries, user)
  for _, device in ipairs(redis.call('HKEYS', presence)) do
    if redis.call('ZSCORE', expiries, user .. '@' .. device) then
      return redis.call('PEXPIRE', presence, {keys.PRESENT_TTL})
    end
  end
  redis.call('PEXPIRE', presence, {keys.OFFLINE_TTL})
end
"""

# KEYS: the user's hash, `expiries`. ARGV: how, user, device, nonce, state, since, expires, late. `how`:
# `arrive`, or `update`, which is ignored for an earlier connection. `late`: the change is ignored unless it
# is newer than the entry. Returns 1, or 0 if it was ignored. Also drops devices that left a day before.
PUT = f"""
{_UNPACK}
{_KEEP}
local presence, expiries = KEYS[1], KEYS[2]
local how, user, device, nonce, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local since, expires = tonumber(ARGV[6]), tonumber(ARGV[7])
local known = unpack_entry(redis.call('HGET', presence, device))
if known then
  if how == 'update' and known[1] ~= '' and known[1] ~= nonce then return 0 end
  if ARGV[8] == 'late' and known[3] >= since then return 0 end
end
if how == 'update' and state == 'offline' and (not known or known[1] == '') then nonce = '' end
redis.call('HSET', presence, device, cmsgpack.pack({{nonce, state, since, expires}}))
if state == 'offline' then
  redis.call('ZREM', expiries, user .. '@' .. device)
else
  redis.call('ZADD', expiries, ARGV[7], user .. '@' .. device)
  redis.call('PEXPIRE', expiries, {keys.PRESENT_TTL})
end
if redis.call('HLEN', presence) > 1 then
  local all = redis.call('HGETALL', presence)
  for i = 1, #all, 2 do
    local entry = unpack_entry(all[i + 1])
    if entry and entry[2] == 'offline' and entry[3] < since - {keys.OFFLINE_TTL} then
      redis.call('HDEL', presence, all[i])
    end
  end
end
keep(presence, expiries, user)
return 1
"""

# For devices that sent a command and are not in the sorted set. KEYS: `expiries`, and the hash of each
# device's user. ARGV: for each device user, device, now, expires. Returns [index from 1, nonce] of each
# device that was absent. A device whose entry is not offline was only missing from the sorted set, and is
# restored there.
APPEAR = f"""
{_UNPACK}
local appeared = {{}}
for i = 1, #KEYS - 1 do
  local presence, at = KEYS[i + 1], 4 * (i - 1)
  local user, device = ARGV[at + 1], ARGV[at + 2]
  local now, expires = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local known = unpack_entry(redis.call('HGET', presence, device))
  local nonce, present, silenced = '', false, false
  if known then
    present = known[2] ~= 'offline'
    silenced = not present and now < known[4] and known[4] - now <= {SILENCED_MOST}
    if known[3] == known[4] then nonce = known[1] end
  end
  if not present and not silenced then
    redis.call('HSET', presence, device, cmsgpack.pack({{nonce, 'online', now, expires}}))
    appeared[#appeared + 1] = {{i, nonce}}
  end
  if not silenced then
    redis.call('PEXPIRE', presence, {keys.PRESENT_TTL})
    redis.call('ZADD', KEYS[1], 'GT', ARGV[at + 4], user .. '@' .. device)
    redis.call('PEXPIRE', KEYS[1], {keys.PRESENT_TTL})
  end
end
return appeared
"""

# KEYS: `expiries`, the users' hashes. ARGV: the users. Returns [user's index, device, entry, expiry or nil]
# of each device. Restores missing entries of the sorted set.
PRESENCE = f"""
{_UNPACK}
local expiries, found = KEYS[1], {{}}
for i, user in ipairs(ARGV) do
  local all = redis.call('HGETALL', KEYS[i + 1])
  for j = 1, #all, 2 do
    local expires = redis.call('ZSCORE', expiries, user .. '@' .. all[j])
    if not expires then
      local entry = unpack_entry(all[j + 1])
      if entry and entry[2] ~= 'offline' then
        redis.call('ZADD', expiries, string.format('%.0f', entry[4]), user .. '@' .. all[j])
        redis.call('PEXPIRE', expiries, {keys.PRESENT_TTL})
      end
    end
    found[#found + 1] = {{i - 1, all[j], all[j + 1], expires}}
  end
end
return found
"""

# KEYS: `expiries`. ARGV: now, limit, prefix of the users' keys, maximum duration of a presence or "". Returns
# [user, device, entry]. A presence beyond the maximum was set by a clock that was ahead. The bound is
# relative to the later of the worker's and Redis's clocks: a worker whose clock is behind must not shorten
# presences.
EXPIRE = f"""
{_UNPACK}
{_KEEP}
local gone = {{}}
if ARGV[4] ~= '' then
  local time = redis.call('TIME')
  local latest = math.max(tonumber(ARGV[1]), time[1] * 1000 + math.floor(time[2] / 1000)) + tonumber(ARGV[4])
  latest = string.format('%.0f', latest)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. latest, '+inf', 'LIMIT', 0, ARGV[2])) do
    redis.call('ZADD', KEYS[1], 'XX', latest, member)
  end
end
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #due, 2 do
  redis.call('ZREM', KEYS[1], due[i])
  local user, device = string.match(due[i], '^([^@]*)@(.*)$')
  local presence = ARGV[3] .. (user or '')
  local known = user and unpack_entry(redis.call('HGET', presence, device))
  if known then
    local expired = tonumber(due[i + 1])
    local entry = cmsgpack.pack({{known[1], 'offline', expired, expired}})
    redis.call('HSET', presence, device, entry)
    keep(presence, KEYS[1], user)
    gone[#gone + 1] = {{user, device, entry}}
  end
end
return gone
"""

# --- rate limits: as `imqtt.core.bucket`, with clocks that differ. KEYS: the buckets. ARGV: tokens a second,
# the level of a full bucket, now, and the number of tokens wanted of each. Returns the number taken of each.
TAKE = f"""
local rate, full, clock = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local taken = {{}}
for i, key in ipairs(KEYS) do
  local level, now = full, clock
  local bucket = redis.call('GET', key)
  if bucket then
    local before, time = string.match(bucket, '^(%d+) (%-?%d+)$')
    if before then  -- otherwise another version wrote it
      time = tonumber(time)
      if time > now and time - now <= {keys.CLOCK_SKEW} then now = time end
      level = math.min(tonumber(before) + math.max(now - time, 0) * rate, full)
    end
  end
  local tokens = math.min(tonumber(ARGV[i + 3]), math.floor(level / 1000))
  level = level - tokens * 1000
  local ttl = math.ceil((full - level) / rate) + {keys.BUCKET_SLACK}
  redis.call('SET', key, string.format('%.0f %.0f', level, now), 'PX', string.format('%.0f', ttl))
  taken[i] = tokens
end
return taken
"""

# --- workers. KEYS: `workers`. An entry is its expiry, 16 digits of Redis's own time in milliseconds, and the
# worker's JSON. The workers' clocks do not matter.

_LIVING = f"""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function living()
  local found = {{}}
  local all = redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    local left = (tonumber(string.sub(all[i + 1], 1, 16)) or 0) - now
    if left > 0 and left <= {keys.LONGEST_BEAT} then
      found[#found + 1] = {{all[i], string.sub(all[i + 1], 17)}}
    else
      redis.call('HDEL', KEYS[1], all[i])
    end
  end
  return found
end
"""

# Returns [id, JSON] of each live worker.
WORKERS = f"{_LIVING} return living()"

# ARGV: id, duration, JSON.
BEAT = f"""
{_LIVING}
redis.call('HSET', KEYS[1], ARGV[1], string.format('%016.0f', now + ARGV[2]) .. ARGV[3])
redis.call('PEXPIRE', KEYS[1], {keys.WORKERS_TTL})
return living()
"""

# Calls every command that the other scripts call, so that a Redis that refuses one does so at the start.
# KEYS: `probe`.
CHECK = f"""
local key = KEYS[1]
redis.call('TIME')
redis.call('SETBIT', key, 0, 1)
redis.call('GETBIT', key, 0)
redis.call('DEL', key)
redis.call('HSET', key, 'a', cmsgpack.pack({{'b'}}))
redis.call('HGET', key, 'a')
redis.call('HGETALL', key)
redis.call('HKEYS', key)
redis.call('HLEN', key)
redis.call('HDEL', key, 'a')
redis.call('ZADD', key, 'GT', 1, struct.pack('<I4', 1))
redis.call('ZSCORE', key, 'a')
redis.call('ZMSCORE', key, 'a')
redis.call('ZRANGEBYSCORE', key, '-inf', 1, 'WITHSCORES', 'LIMIT', 0, 1)
redis.call('ZREM', key, struct.pack('<I4', 1))
redis.call('SET', key, '1')
redis.call('MGET', key)
redis.call('GET', key)
redis.call('PEXPIRE', key, {keys.PROBE_TTL})
"""
