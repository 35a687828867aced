'use strict'
// Large inputs are copied in slices, one slice per turn of the loop over all of them, first come first served.

const { setImmediate } = require('./clock.cjs')
const native = require('./native.cjs')

/** Bytes per turn. At 1.5 GB/s, the rate of a copy into fresh pages, it is 0.7 ms. */
const SLICE = 1 << 20

const jobs = []
let running = false

/** Copies `views` (Uint8Arrays; other elements pass), then calls `done(list)` with native handles, or `failed(error)`. */
function copyInSlices(job) {
  job.at = 0
  job.offset = 0
  job.list = []
  job.totals = job.views.map((view) => (ArrayBuffer.isView(view) ? view.byteLength : 0))
  jobs.push(job)
  if (!running) {
    running = true
    // The first slice is copied at once.
    turn()
  }
}

function turn() {
  let room = SLICE
  try {
    while (jobs.length > 0) {
      const job = jobs[0]
      if (!job.dropped) {
        try {
          while (job.at < job.views.length && room > 0) room -= slice(job, room)
        } catch (error) {
          jobs.shift()
          job.failed(error)
          continue
        }
        if (job.at < job.views.length) break
      }
      jobs.shift()
      if (job.dropped) continue
      try {
        job.done(job.list)
      } catch (error) {
        job.failed(error)
      }
    }
  } finally {
    // Whatever one job throws, the others go on.
    running = jobs.length > 0
    if (running) setImmediate(turn)
  }
}

function slice(job, room) {
  const view = job.views[job.at]
  if (!ArrayBuffer.isView(view)) {
    job.list.push(view)
    job.at++
    return 0
  }
  const total = job.totals[job.at]
  if (job.offset === 0) job.list.push(native.stage(total))
  const length = Math.min(room, total - job.offset)
  native.stageCopy(job.list[job.at], view, job.offset, length, total)
  job.offset += length
  if (job.offset === total) {
    job.at++
    job.offset = 0
  }
  return length
}

/** A copy made now. */
function copyNow(view) {
  const handle = native.stage(view.byteLength)
  native.stageCopy(handle, view, 0, view.byteLength, view.byteLength)
  return handle
}

/** Whether a copy for `key` of `pool` is under way: a later task with that key must not overtake it. */
function isCopying(pool, key) {
  return jobs.some((job) => job.pool === pool && job.key === key && !job.dropped)
}

module.exports = { SLICE, copyInSlices, copyNow, isCopying }
