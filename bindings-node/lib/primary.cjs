'use strict'
// The primary of `offloop/cluster`. Its workers are those of one Cluster that starts them one by one and replaces none (core/src/cluster/fork.rs): they share sockets, are watched by
// pidfd, and end with this process. lib/forked.cjs is their side.

const { EventEmitter } = require('node:events')
const { constants } = require('node:os')
const native = require('./native.cjs')
const { fail, signalName } = require('./error.cjs')
const { begin, end, newNote, onNote, report } = require('./completion.cjs')
const { opened, finished } = require('./channel.cjs')
const { PRELOAD } = require('./launch.cjs')
const { Worker, INNER, SERIALIZATIONS, SCHED_NONE, SCHED_RR, coded, post, receive } = require('./forks.cjs')

const cluster = new EventEmitter()
/** The core's cluster, from the first fork on. */
let handle = null
let lastId = 0
/** By slot and incarnation: workers that have not ended. */
const running = new Map()

/** What of a ChildProcess a worker's process has. */
class WorkerProcess extends EventEmitter {
  connected = true
  killed = false
  exitCode = null
  signalCode = null
  stdin = null
  stdout = null
  stderr = null
  #known
  #channel
  #serialization

  /** `known`: slot, generation and incarnation. */
  constructor(known, pid, channel, serialization, args) {
    super()
    this.#known = known
    this.pid = pid
    ;[this.spawnfile] = args
    this.spawnargs = args
    this.#channel = channel
    this.#serialization = serialization
  }

  send(message, ...rest) {
    return post(this, this.#channel, this.#serialization, message, ...rest)
  }

  kill(signal = 'SIGTERM') {
    const number = typeof signal === 'number' ? signal : constants.signals[signal]
    if (number === undefined) throw coded(TypeError, 'ERR_UNKNOWN_SIGNAL', `Unknown signal: ${signal}`)
    // Not by its number: that is another's, perhaps, before its end is heard of here.
    if (this.exitCode !== null || this.signalCode !== null || !native.clusterSignal(handle, ...this.#known, number)) return false
    this.killed = true
    return true
  }

  disconnect() {
    this.#channel.close()
  }

  /** A worker keeps its primary alive: there is nothing to detach it by. */
  ref() {}
  unref() {}
}

class Forked extends Worker {
  #channel

  constructor(id, child, channel) {
    super({ id, process: child })
    this.#channel = channel
    child.on('message', (...message) => {
      this.emit('message', ...message)
      cluster.emit('message', this, ...message)
    })
    child.on('error', (error) => this.emit('error', error))
    channel.on('message', (message, fds) => this.#came(message, fds))
    channel.on('close', () => this.disconnected())
  }

  #came(message, fds) {
    if (message[0] === INNER) this.exitedAfterDisconnect = true
    else receive(message, fds, (value, handle) => this.process.emit('message', value, handle))
  }

  /** Asks the worker to close its servers, and to end the connection with the last. */
  disconnect() {
    this.exitedAfterDisconnect = true
    // As node:cluster: it is no longer among those that work.
    remove(this)
    if (this.process.connected) {
      try {
        this.#channel.send([INNER, 'disconnect'])
      } catch {
        // One that takes nothing any more cannot be asked.
        this.process.disconnect()
      }
    }
    return this
  }

  disconnected() {
    if (!this.process.connected) return
    this.process.connected = false
    this.exitedAfterDisconnect = Boolean(this.exitedAfterDisconnect)
    this.state = 'disconnected'
    if (this.isDead()) remove(this)
    this.process.emit('disconnect')
    this.emit('disconnect')
    cluster.emit('disconnect', this)
    told()
  }

  exited(code, signal) {
    // What it has said comes first.
    finished(this.#channel)
    this.process.exitCode = code
    this.process.signalCode = signal
    const { connected } = this.process
    this.exitedAfterDisconnect = Boolean(this.exitedAfterDisconnect)
    this.disconnected()
    this.state = 'dead'
    if (!connected) remove(this)
    this.process.emit('exit', code, signal)
    this.emit('exit', code, signal)
    cluster.emit('exit', this, code, signal)
    this.process.emit('close', code, signal)
  }
}

function remove(worker) {
  delete cluster.workers[worker.id]
}

/** Functions that wait until no worker is connected. */
const waiting = []

function told() {
  if (waiting.length === 0 || [...running.values()].some((worker) => worker.isConnected())) return
  for (const fn of waiting.splice(0)) fn()
}

/** Where a worker listens, as node:cluster has it. */
function addressOf(text) {
  if (text.startsWith('unix:')) return { addressType: -1, address: text.slice(5), port: null, fd: undefined }
  const at = text.lastIndexOf(':')
  const host = text.slice(0, at)
  const address = host === '' ? null : host.replace(/^\[|\]$/g, '')
  return { addressType: host.includes(':') ? 6 : 4, address, port: Number(text.slice(at + 1)), fd: undefined }
}

function onEvent([what, slot, , incarnation, , ...rest]) {
  const key = `${slot}.${incarnation}`
  const worker = running.get(key)
  if (worker === undefined) return
  switch (what) {
    case 'online':
      worker.state = 'online'
      worker.emit('online')
      cluster.emit('online', worker)
      break
    case 'listening': {
      const address = addressOf(rest[0])
      worker.state = 'listening'
      worker.emit('listening', address)
      cluster.emit('listening', worker, address)
      break
    }
    case 'exit': {
      running.delete(key)
      end()
      const [code, signal] = rest
      worker.exited(code, signal === null ? null : signalName(signal))
      break
    }
  }
}

function start() {
  if (handle !== null) return
  const note = newNote()
  const balance = cluster.schedulingPolicy === SCHED_RR ? 'round-robin' : 'shared'
  // As node:cluster, it watches no loop.
  handle = native.clusterStart({ oneByOne: true, hang: 0, balance }, [], note, [process.execPath], [], undefined)
  onNote(note, () => {
    for (const event of native.clusterEvents(handle)) {
      try {
        onEvent(event)
      } catch (error) {
        report(error)
      }
    }
  })
}

function setupPrimary(options) {
  const settings = {
    args: process.argv.slice(2),
    exec: process.argv[1],
    execArgv: process.execArgv,
    silent: false,
    ...cluster.settings,
    ...options,
  }
  for (const name of ['silent', 'stdio', 'uid', 'gid']) {
    if (settings[name] !== undefined && settings[name] !== false)
      throw fail('Unsupported', 'workers of offloop/cluster have the streams and the user of their primary', { option: name })
  }
  cluster.settings = settings
  process.nextTick(() => cluster.emit('setup', settings))
}

function fork(env) {
  setupPrimary()
  start()
  const { exec, args, execArgv, cwd, serialization = 'json' } = cluster.settings
  if (!SERIALIZATIONS.includes(serialization)) {
    const text = `The property 'options.serialization' must be one of: undefined, 'json', 'advanced'. Received '${serialization}'`
    throw coded(TypeError, 'ERR_INVALID_ARG_VALUE', text)
  }
  const id = ++lastId
  const command = [process.execPath, ...execArgv, '--require', PRELOAD, exec, ...args.map(String)]
  const variables = Object.entries({ ...env, OFFLOOP_WORKER: `${id},${serialization}` })
  const text = (value) => (value === undefined ? undefined : String(value))
  const [slot, generation, incarnation, pid] = native.clusterFork(
    handle,
    command,
    variables.flatMap(([name, value]) => [name, text(value)]),
    cwd,
  )
  begin()
  // Its worker keeps this process alive, and not what it may say.
  const channel = opened(native.clusterChannel(handle, slot, generation, incarnation)).unref()
  const worker = new Forked(id, new WorkerProcess([slot, generation, incarnation], pid, channel, serialization, command), channel)
  running.set(`${slot}.${incarnation}`, worker)
  cluster.workers[id] = worker
  process.nextTick(() => {
    worker.process.emit('spawn')
    cluster.emit('fork', worker)
  })
  return worker
}

function disconnect(callback) {
  const all = [...running.values()].filter((worker) => worker.isConnected())
  if (callback !== undefined) {
    if (all.length === 0) process.nextTick(callback)
    else waiting.push(callback)
  }
  for (const worker of all) worker.disconnect()
}

/** Heeded by the first fork. */
const policy = process.env.NODE_CLUSTER_SCHED_POLICY === 'none' ? SCHED_NONE : SCHED_RR

module.exports = Object.assign(cluster, {
  isWorker: false,
  isMaster: true,
  isPrimary: true,
  Worker,
  workers: {},
  settings: {},
  SCHED_NONE,
  SCHED_RR,
  schedulingPolicy: policy,
  setupPrimary,
  setupMaster: setupPrimary,
  fork,
  disconnect,
})
