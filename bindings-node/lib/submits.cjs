'use strict'
// Calls of workers, threads or processes: one promise per slot, and submits that cross into native code together.
//
// A pool here is what lib/workers.cjs and lib/processes.cjs share with their views. Beside `inFlight`, `pressed`, `maxQueue` and `emit` it has
// `submitEach(records, count, refused)`, which gives what was collected to native code, and with a `tracer` the name of what is called, `nameOf(target)`.

const { AsyncResource } = require('node:async_hooks')
const native = require('./native.cjs')
const { begin, end, listen, unlisten, inFlight } = require('./completion.cjs')

/** With so many in flight, submits are collected: the workers have enough to do until they come. */
const COLLECT_FROM = 64
const COLLECT = 64
const COLLECT_BYTES = 256 * 1024
/** 32-bit words per collected submit; the same layout as in src/worker.rs and src/process.rs. */
const WORDS = 5
const records = new Uint8Array(COLLECT * WORDS * 4)
const words = new Uint32Array(records.buffer)
const refused = []
let collected = 0
let collectedBytes = 0
let collectedPool = null

// One promise per slot.
const resolves = []
const rejects = []
const pools = []
/** What a call has beside its promise, or null. */
const extras = []
const free = []
const resolved = Promise.resolve()

let grabbing = 0
const grab = (resolve, reject) => {
  resolves[grabbing] = resolve
  rejects[grabbing] = reject
}

const nextSlot = () => (free.length > 0 ? free[free.length - 1] : resolves.length)

/** A promise in the slot that `nextSlot` said. */
function open(pool, extra) {
  const slot = free.length > 0 ? free.pop() : resolves.length
  grabbing = slot
  const promise = new Promise(grab)
  pools[slot] = pool
  extras[slot] = extra
  pool.inFlight++
  begin()
  return promise
}

/** The call of `slot` is settled; whoever counts calls is told by the caller of this. */
function release(slot) {
  const pool = pools[slot]
  const extra = extras[slot]
  resolves[slot] = rejects[slot] = pools[slot] = undefined
  extras[slot] = null
  free.push(slot)
  if (extra !== null) {
    if (extra.submitted) {
      if (pool.tracer !== null) extra.trace = native.callTrace(slot)
      native.callForget(slot)
    }
    if (extra.signal) unlisten(extra.signal, extra.onAbort)
    extra.drop?.()
  }
  pool.inFlight--
  if (pool.pressed && pool.inFlight * 2 <= pool.maxQueue) {
    pool.pressed = false
    pool.emit('drain')
  }
}

/** Native code did not take the call of `slot`; true if that is because the pool is full. */
function refuse(slot, error) {
  rejects[slot](error)
  release(slot)
  end()
  return error.code === 'ERR_OFFLOOP_FULL'
}

/** Where the value of the next submit of `pool` is written: behind those that were collected. */
function collectAt(pool) {
  if (collectedPool !== pool) {
    flush()
    collectedPool = pool
  }
  return collectedBytes
}

/** Collects a submit whose value was written up to `last`. */
function collect(pool, number, flags, last) {
  const slot = nextSlot()
  const promise = open(pool, null)
  if (collected === 0 && inFlight() > COLLECT_FROM) resolved.then(flush)
  const at = collected * WORDS
  words[at] = number
  words[at + 1] = slot
  words[at + 2] = flags
  words[at + 3] = collectedBytes
  words[at + 4] = last - collectedBytes
  collectedBytes = last
  if (++collected === COLLECT || collectedBytes > COLLECT_BYTES || inFlight() <= COLLECT_FROM) flush()
  return promise
}

/** Submits what was collected: after the microtasks before it, when it is enough, and before anything else that a pool is asked. */
function flush() {
  if (collected === 0) return
  const pool = collectedPool
  const count = collected
  collected = 0
  collectedBytes = 0
  pool.submitEach(records, count, refused)
  if (refused.length === 0) return
  let full = false
  for (let i = 0; i < refused.length; i += 2) full = refuse(refused[i], refused[i + 1]) || full
  refused.length = 0
  if (full) pool.press()
}

/**
 * A task with options, or of a pool with a tracer: `hand(slot)` gives it to native code, `drop()` is called when it is settled. With `wait` it waits
 * beyond a full queue. `run.leaving` of a stream is told how to cancel it.
 */
function submitOne(pool, target, run, wait, hand, drop = null) {
  const { signal } = run
  const extra = {
    submitted: false,
    signal,
    onAbort: null,
    onProgress: run.onProgress && AsyncResource.bind(run.onProgress),
    drop,
    trace: null,
  }
  const slot = nextSlot()
  const promise = pool.tracer === null ? open(pool, extra) : pool.tracer.follow(open(pool, extra), pool.nameOf(target), extra)
  try {
    // Code of the signal, which may throw.
    if (signal) {
      extra.onAbort = () => native.callCancel(slot)
      listen(signal, extra.onAbort)
    }
    if (wait && pool.inFlight > pool.maxQueue) pool.press()
    hand(slot)
    extra.submitted = true
    run.leaving?.begun(() => {
      if (extras[slot] === extra) native.callCancel(slot)
    })
  } catch (error) {
    if (refuse(slot, error)) pool.press()
  }
  return promise
}

module.exports = { resolves, rejects, pools, extras, release, collectAt, collect, flush, submitOne }
