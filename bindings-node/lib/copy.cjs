'use strict'
// Large inputs are copied in slices, one slice per turn of the loop over all of them.
//
// Every second slice is for the call that came first, so that none starves; the others are for the one with least to copy.
// So a short one does not wait for a long one, of another pool perhaps, and equal ones are copied one after another: workers
// begin early, and few copies exist at a time.

const { setImmediate } = require('./clock.cjs')
const native = require('./native.cjs')

/** Bytes per turn. At 1.5 GB/s, the rate of a copy into fresh pages, it is 0.7 ms. */
const SLICE = 1 << 20

/** Jobs with one key of a pool in their order, or one job without a key. The line that came first is first. */
const lines = []
/** Whether the next slice is for the first line. */
let oldest = true
let running = false

/** Copies `views` (Uint8Arrays; other elements pass), then calls `done(list)` with native handles, or `failed(error)`. */
function copyInSlices(job) {
  job.at = 0
  job.offset = 0
  job.list = []
  job.totals = job.views.map((view) => (ArrayBuffer.isView(view) ? view.byteLength : 0))
  job.left = job.totals.reduce((sum, total) => sum + total, 0)
  const line = lines.find(([first]) => isOf(first, job.pool, job.key))
  if (line === undefined) lines.push([job])
  else line.push(job)
  if (!running) {
    running = true
    // The first slice is copied at once.
    turn()
  }
}

function isOf(job, pool, key) {
  return key !== undefined && job.key === key && job.pool === pool
}

function turn() {
  let room = SLICE
  try {
    while (room > 0 && lines.length > 0) room = serve(room)
  } finally {
    // Whatever one job throws, the others go on.
    running = lines.length > 0
    if (running) setImmediate(turn)
  }
}

/** Copies up to `room` bytes for one job, and ends it when that was all; returns the room that is left. */
function serve(room) {
  const at = oldest ? 0 : shortest()
  oldest = !oldest
  const line = lines[at]
  const [job] = line
  const before = job.left
  let failed = false
  let reason
  try {
    for (let left = room; !job.dropped && job.at < job.views.length && left > 0; left = room - (before - job.left)) slice(job, left)
  } catch (error) {
    failed = true
    reason = error
  }
  const left = room - (before - job.left)
  if (!failed && !job.dropped && job.at < job.views.length) return left
  lines.splice(at, 1)
  line.shift()
  // What comes next with this key is younger than the other lines.
  if (line.length > 0) lines.push(line)
  if (job.dropped) return left
  if (!failed) {
    try {
      job.done(job.list)
      return left
    } catch (error) {
      reason = error
    }
  }
  job.failed(reason)
  return left
}

/** Where the line is whose first job has least to copy. */
function shortest() {
  let least = 0
  for (let i = 1; i < lines.length; i++) if (lines[i][0].left < lines[least][0].left) least = i
  return least
}

function slice(job, room) {
  const view = job.views[job.at]
  if (!ArrayBuffer.isView(view)) {
    job.list.push(view)
    job.at++
    return
  }
  const total = job.totals[job.at]
  if (job.offset === 0) job.list.push(native.stage(total))
  const length = Math.min(room, total - job.offset)
  native.stageCopy(job.list[job.at], view, job.offset, length, total)
  job.offset += length
  job.left -= length
  if (job.offset === total) {
    job.at++
    job.offset = 0
  }
}

/** A copy made now. */
function copyNow(view) {
  const handle = native.stage(view.byteLength)
  native.stageCopy(handle, view, 0, view.byteLength, view.byteLength)
  return handle
}

/** Whether a copy for `key` of `pool` is under way: a later task with that key must not overtake it. */
function isCopying(pool, key) {
  return lines.some((line) => isOf(line[0], pool, key) && line.some((job) => !job.dropped))
}

module.exports = { SLICE, copyInSlices, copyNow, isCopying }
