'use strict'
// A worker process of a ProcessPool: node worker-main.cjs FILE [ARGUMENT …]. It loads FILE, as a WorkerPool's thread does, and runs what
// comes on its lane (core/src/pool/lane). It sleeps in its own event loop, so timers and sockets of the user's code go on.

const path = require('node:path')
const threads = require('node:worker_threads')
const { syncBuiltinESMExports } = require('node:module')
const { isNativeError, isGeneratorObject } = require('node:util').types
const { fileURLToPath, pathToFileURL } = require('node:url')
const { setImmediate, now } = require('./clock.cjs')
const native = require('./native.cjs')
const { OffloopError, fail } = require('./error.cjs')
const { begin: stayAlive, newNote, onNote, report } = require('./completion.cjs')
const { Writer, views, moved, read, readParts, bufferOf, NODE, FAILED, HEAD } = require('./frame.cjs')
const { unserializable, unreadable } = require('./codec.cjs')
const { load, Files, functionOf, hookOf, shown, textOf } = require('./functions.cjs')
const inline = require('./inline.cjs')
const { memoryOf, detach } = require('./move.cjs')
const { generate } = require('./stream.cjs')
const { Sink } = require('./frames.cjs')
const { promiseOf, whenSettled } = require('./settle.cjs')
const tasks = require('./task.cjs')

// Flags of a frame; the same numbers as in lib/processes.cjs.
const SPREAD = 1
const SOURCE = 2
const STREAM = 4
const FILE = 8
/** Values that a stream makes ahead for a caller that says nothing of it. */
const WINDOW = 64
/** A job in the common form whose caller takes values while it runs; the same number as in src/process.rs. */
const COMMON_STREAM = 2
// What `processTake` returns beside arrays; the same numbers as in src/process.rs.
const NOTHING = 0
const SHORT = 1
const REFUSED = 2
/** Longest time in ms without a turn of the loop, as far as single tasks allow. */
const TURN = 1
// What `processOutcome` says.
const CANCELLED = 1
const LATE = 2

/** Index and form of a job, then its frame where that is short. */
const inbox = Buffer.allocUnsafeSlow(8 + 4096)
const about = new Uint32Array(inbox.buffer, 0, 2)
const writer = new Writer()
const progressWriter = new Writer(false)

let desk
let concurrency = 1
let context
let loaded
let files
const functions = new Map()
/** Functions that came as their source. */
const inlines = new Map()
/** Streams that go on. */
const sinks = new Set()
/** By index: the job came in the common form, and so goes its reply. */
const isCommon = []

/** Functions whose promise is pending. */
let running = 0
let turnStart = 0
let yielding = false
let soon = false
let gone = false

function find(name) {
  let found = functions.get(name)
  if (found === undefined) {
    found = functionOf(loaded, name)
    functions.set(name, found)
  }
  return found
}

/** A function of a file that the call names. */
function findIn([url, name]) {
  const key = inline.inFile(url, name)
  const found = functions.get(key)
  if (found !== undefined) return found
  return files.functionOf(url, name, (found) => functions.set(key, found))
}

function findInline(source) {
  let found = inlines.get(source)
  if (found === undefined) {
    found = inline.functionOf(source)
    inlines.set(source, found)
  }
  return found
}

function finish(index, failed, value) {
  if (isCommon[index]) return answer(index, failed, value)
  let last
  let memory
  try {
    memory = failed ? null : memoryIn(value)
    last = writer.write(0, failed ? NODE | FAILED : NODE, 0, null, value, 'result')
  } catch (error) {
    return finish(index, true, failed ? shown(value) : error)
  }
  try {
    const parts = writer.takeParts()
    native.processFinish(desk, index, failed, writer.memory, last, views(parts))
    moved(parts)
    detach(memory)
  } catch (error) {
    // There is no memory for it, or a TransferBuffer of it was detached before.
    if (failed) throw error
    return finish(index, true, error)
  } finally {
    writer.shrink()
  }
}

/** What a result gives away. */
function memoryIn(value) {
  try {
    return memoryOf(value)
  } catch (error) {
    throw error instanceof OffloopError ? error : unserializable('result', value, error)
  }
}

/** The reply to a caller in any language. */
function answer(index, failed, value) {
  if (failed && value instanceof DOMException) value = shown(value, isCommonForm)
  else if (failed && !isNativeError(value)) value = new Error(`thrown: ${textOfValue(value)}`)
  try {
    const memory = failed ? null : memoryIn(value)
    native.processAnswer(desk, index, failed, value)
    detach(memory)
  } catch (error) {
    const told = isGeneratorObject(value) ? unserializable('result', value, error) : error
    native.processAnswer(desk, index, true, failed ? shown(value, isCommonForm) : told)
  }
}

/** Whether a caller in any language can be given `error`. */
function isCommonForm(error) {
  native.processEncode(error)
  return true
}

function textOfValue(value) {
  try {
    return String(value)
  } catch {
    return typeof value
  }
}

function begin(taken) {
  const index = about[0]
  const common = taken !== SHORT && about[1] !== 0
  const streams = common && about[1] === COMMON_STREAM
  isCommon[index] = common
  let name
  let value
  let flags = SPREAD
  try {
    if (common) [name, value] = taken
    else {
      const frame = taken === SHORT ? inbox : bufferOf(taken[0])
      const at = taken === SHORT ? 8 : 0
      const parts = taken === SHORT ? null : taken
      flags = frame[at + 1]
      const first = read(frame, at + HEAD, null)
      name = first.value
      value = read(frame, first.end, parts).value
    }
  } catch (error) {
    return finish(index, true, unreadable('argument', error))
  }
  if (streams) send(index, name, value, WINDOW)
  else if ((flags & STREAM) !== 0) send(index, name[1], [value], name[0])
  else call(index, name, flags, value)
}

/** A task whose values go one by one. */
async function send(index, name, args, window) {
  const task = tasks.storage === null ? null : new tasks.Task(null, index, CANCELLED, LATE, context)
  const run = task === null ? (f) => f() : (f) => tasks.run(task, f, [])
  const sink = new Sink(desk, index, window, isCommon[index])
  running++
  sinks.add(sink)
  let { failed, error } = await generate(() => find(name)(...args), run, sink)
  try {
    await sink.flush()
  } catch (thrown) {
    if (!failed) error = thrown
    failed = true
  }
  sinks.delete(sink)
  settled(index, failed, error, task)
}

function call(index, name, flags, value) {
  const spread = (flags & SPREAD) !== 0
  let result
  const task = tasks.storage === null ? null : new tasks.Task(null, index, CANCELLED, LATE, context)
  try {
    const f = (flags & FILE) !== 0 ? findIn(name) : (flags & SOURCE) === 0 ? find(name) : findInline(name)
    if (task !== null) result = tasks.run(task, f, spread ? value : [value])
    else if (!spread) result = f(value)
    else result = value.length === 1 ? f(value[0]) : f(...value)
    const promise = promiseOf(result)
    if (promise !== null) {
      whenSettled(
        promise,
        (value) => settled(index, false, value, task),
        (error) => settled(index, true, error, task),
      )
      running++
      return
    }
  } catch (error) {
    task?.end()
    return finish(index, true, error)
  }
  task?.end()
  finish(index, false, result)
}

function settled(index, failed, value, task) {
  running--
  task?.end()
  finish(index, failed, value)
  pumpSoon()
}

const resolved = Promise.resolve()
function pumpSoon() {
  if (soon) return
  soon = true
  resolved.then(() => {
    soon = false
    pump()
  })
}

/** The loop turns before the next task. */
function yieldTurn() {
  if (yielding) return
  yielding = true
  setImmediate(onTurn)
}

function onTurn() {
  yielding = false
  turnStart = now()
  pump()
}

/** Takes and runs jobs until there are none, all places are taken, or the loop should turn. */
function pump() {
  if (gone || yielding) return
  for (;;) {
    if (running >= concurrency) {
      if (tasks.isAwaited() || sinks.size > 0) listen()
      return
    }
    if (now() - turnStart > TURN) return yieldTurn()
    const taken = native.processTake(desk, inbox)
    if (taken === NOTHING) {
      if (!native.processArm(desk, false)) continue
      pollSinks()
      if (running === 0 && native.processDraining(desk)) leave()
      return
    }
    if (taken !== REFUSED) begin(taken)
  }
}

/** Whatever becomes of the jobs that run wakes the loop. */
function listen() {
  native.processArm(desk, true)
  tasks.poll()
  pollSinks()
}

function pollSinks() {
  for (const sink of sinks) sink.poll()
}

/** Called when there is work, a job was cancelled, or no more jobs come. */
function wake() {
  if (gone || loaded === undefined) return
  try {
    tasks.poll()
    pollSinks()
    turnStart = now()
    pump()
  } catch (error) {
    // Not lost in native code, which called this: it ends the worker.
    report(error)
  }
}

function tellProgress(index, value) {
  if (isCommon[index]) return native.processProgress(desk, index, value)
  const last = progressWriter.write(0, NODE, 0, null, value, 'progress')
  native.processProgress(desk, index, progressWriter.memory, last)
}

async function leave() {
  gone = true
  try {
    await hookOf(loaded, 'teardown')?.(context)
    await files.teardown()
  } finally {
    native.processDrained(desk)
    process.exit()
  }
}

/** `[file, argument, …]`: what the user's file sees in `process.argv`. */
function argumentsOf([file, ...rest]) {
  const url = /^(file|data|node):/.test(file) ? file : pathToFileURL(path.resolve(file)).href
  process.argv = [process.argv[0], url.startsWith('file:') ? fileURLToPath(url) : url, ...rest]
  return url
}

async function start() {
  if (process.argv.length < 3) throw fail('Invalid', 'no worker file is given')
  const note = newNote()
  onNote(note, wake)
  desk = native.processAttach(note)
  if (desk === null) throw fail('Invalid', 'this program is started by a ProcessPool')
  // A pool is what ends this process.
  stayAlive()
  // The last words of a worker that nobody saves; nothing else changes for the user's own handlers.
  process.on('uncaughtExceptionMonitor', (error) => {
    if (process.listenerCount('uncaughtException') === 0) native.processFail(desk, textOf(error))
  })
  const [most, setup] = native.processSetup(desk)
  concurrency = most
  if (setup !== null) {
    if (setup[0] !== null) {
      const said = readParts(setup)
      context = said.context
      threads.workerData = said.workerData
      syncBuiltinESMExports()
    } else context = setup[1]
  }
  files = new Files(context)
  tasks.isWorker = true
  tasks.progress = tellProgress
  tasks.outcome = (index) => native.processOutcome(desk, index)
  tasks.onAwaited = () => {
    if (running >= concurrency) native.processArm(desk, true)
  }
  const file = await load(argumentsOf(process.argv.slice(2)))
  await hookOf(file, 'init')?.(context)
  loaded = file
  native.processReady(desk)
  turnStart = now()
  pump()
}

start().catch((error) => {
  // As an error that nobody caught: it is printed, the exit code is 1, and the monitor above tells the pool.
  setImmediate(() => {
    throw error
  })
})
