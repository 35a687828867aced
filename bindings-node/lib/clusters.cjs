'use strict'
// Cluster: N copies of a server on the same sockets. The core keeps the processes, binds, reloads and drains (core/src/cluster); this
// file turns its events into those of Node.js. lib/member.cjs is the worker's side.

const { EventEmitter } = require('node:events')
const fs = require('node:fs')
const path = require('node:path')
const { fileURLToPath } = require('node:url')
const native = require('./native.cjs')
const { OffloopError, fail, signalName, checkOptions, checkKnown } = require('./error.cjs')
const { begin, end, newNote, onNote, offNote, report } = require('./completion.cjs')
const { wrongType, texts, checkEnv, closeGrace } = require('./options.cjs')
const { PRELOAD, inherited } = require('./launch.cjs')
const { opened, finished, sentCopy, checkSend } = require('./channel.cjs')
const broker = require('./broker.cjs')

/** Options of the command that workers run. */
const COMMAND = ['exec', 'args', 'execArgv', 'env', 'cwd']
const KNOWN = `${COMMAND.join(' ')} nice pinCpus uid gid oomScore limits workers spares listen balance readyTimeout minReady drainTimeout killGrace heartbeat maxAge maxMemory maxRequests metrics log pool`

/** What runs with what is `given` in place of what ran before. A command has its arguments in `exec`, so those of a script go with it. */
function changed(command, given) {
  const next = { ...command }
  if (Array.isArray(given.exec) !== Array.isArray(command.exec) && given.exec !== undefined) next.args = next.execArgv = undefined
  for (const [name, value] of Object.entries(given)) if (value !== undefined) next[name] = value
  return next
}

function checkCommand({ exec, args, execArgv, env, cwd }) {
  texts('args', args)
  texts('execArgv', execArgv)
  checkEnv(env)
  if (cwd !== undefined && (typeof cwd !== 'string' || cwd === '')) throw wrongType('cwd', 'path', cwd)
  if (Array.isArray(exec)) {
    if (exec.length === 0 || exec[0] === '' || exec.some((part) => typeof part !== 'string'))
      throw wrongType('exec', 'file or array of text', exec)
    if (args?.length > 0 || execArgv?.length > 0)
      throw fail('Invalid', 'a command has its arguments in exec', { option: args ? 'args' : 'execArgv' })
    return
  }
  if (!(exec instanceof URL) && (typeof exec !== 'string' || exec === '')) throw wrongType('exec', 'file or array of text', exec)
  const file = fileOf(exec, cwd)
  if (!fs.existsSync(file)) throw fail('NotFound', 'script is not there', { exec: file })
}

const fileOf = (exec, cwd) => (exec instanceof URL ? fileURLToPath(exec) : path.resolve(cwd ?? '.', exec))

/** What native code takes: program and arguments, names and values by turns, directory. */
function commandOf({ exec, args = [], execArgv = [], env = {}, cwd }) {
  const variables = Object.entries(env).flatMap(([name, value]) => [
    name,
    value === undefined || value === null ? undefined : String(value),
  ])
  if (Array.isArray(exec)) return [exec, variables, cwd]
  return [[process.execPath, ...inherited(), ...execArgv, '--require', PRELOAD, fileOf(exec, cwd), ...args], variables, cwd]
}

/** Where to listen, as text. */
function addressOf(listen, option = 'listen', want = 'array of ports, addresses or { host, port, path, fd }') {
  if (typeof listen === 'number' || typeof listen === 'string') return String(listen)
  if (listen === null || typeof listen !== 'object') throw wrongType(option, want, listen)
  const { port, host, path: file, fd, ...unknown } = listen
  checkKnown(unknown, 'port host path fd')
  const wrong = wrongType(option, '{ port, host }, { path } or { fd }', listen)
  if (fd !== undefined) {
    if (!Number.isInteger(fd) || port !== undefined || host !== undefined || file !== undefined) throw wrong
    return `fd:${fd}`
  }
  if (file !== undefined) {
    if (typeof file !== 'string' || file === '' || port !== undefined || host !== undefined) throw wrong
    return `unix:${path.resolve(file)}`
  }
  if (typeof port !== 'number' || (host !== undefined && typeof host !== 'string')) throw wrong
  if (host === undefined) return `:${port}`
  return String(host).includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}

/** Names and numbers by turns. */
function checkLimits(limits) {
  if (limits === undefined || limits === null) return undefined
  if (typeof limits !== 'object' || Array.isArray(limits)) throw wrongType('limits', 'object of numbers', limits)
  return Object.entries(limits).flat()
}

function checkHeartbeat(heartbeat) {
  if (heartbeat === undefined || heartbeat === null) return {}
  if (heartbeat === false) return { hang: 0 }
  if (typeof heartbeat !== 'object') throw wrongType('heartbeat', '{ interval, timeout } or false', heartbeat)
  const { interval, timeout, ...unknown } = heartbeat
  checkKnown(unknown, 'interval timeout')
  return { beat: interval, hang: timeout }
}

function checkLog(log) {
  if (log === undefined || log === null) return {}
  if (typeof log === 'string') return checkLog({ file: log })
  if (typeof log !== 'object') throw wrongType('log', "'prefixed', 'raw', 'none', a path or { file, size, keep }", log)
  const { file, size, keep, ...unknown } = log
  checkKnown(unknown, 'file size keep')
  if (typeof file !== 'string') throw wrongType('log.file', 'path', file)
  return { log: file, logSize: size, logKeep: keep }
}

/** Slots of spares, from here on. */
const FIRST_SPARE = 1024

/** What of a worker's channel is an event of its cluster, once somebody listens for it. */
const SAID = ['message', 'request']
/** Whom a slot means while it has several processes: the last of these that one of them is. */
const STANDING = ['draining', 'starting', 'unresponsive', 'spare', 'ready']

/** Why one worker does not get what others do. */
const MISSES = ['Full', 'Closed', 'PeerDied'].map((kind) => fail(kind, '').code)

/** One worker as its cluster sees it. */
class ClusterWorker {
  /** `starting`, `ready`, `spare`, `unresponsive`, `draining` or `exited`. */
  state = 'starting'
  #incarnation
  #channel = null
  #load
  /** `load` gives, by slot, generation and incarnation, what it has served and how late its loop is, or null. */
  constructor(slot, generation, incarnation, pid, load) {
    this.slot = slot
    this.generation = generation
    this.pid = pid
    this.#incarnation = incarnation
    this.#load = load
  }

  /** Requests that it has answered since its start; null once it has ended. */
  get served() {
    return this.#shown()?.[0] ?? null
  }

  /** ms by which its event loop is late, or was: half of it is left after each second. Null before its first beat, and once it has ended. */
  get loopDelay() {
    return this.#shown()?.[1] ?? null
  }

  #shown() {
    return this.#load(this.slot, this.generation, this.#incarnation)
  }

  /** Sends a message, which waits in this process where the worker has no room for it; false then. */
  send(message, options) {
    return ClusterWorker.channelOf(this).send(message, options)
  }

  /** The worker's reply, or its error. */
  request(message, options) {
    return ClusterWorker.channelOf(this).request(message, options)
  }

  static incarnationOf(worker) {
    return worker.#incarnation
  }

  static channelOf(worker) {
    if (worker.#channel === null) throw fail('NotFound', 'worker has no process', { slot: worker.slot })
    return worker.#channel
  }

  /** What was a spare has a place. */
  static place(worker, slot, incarnation) {
    worker.slot = slot
    worker.#incarnation = incarnation
  }

  static connect(worker, channel) {
    worker.#channel = channel
  }
}

class Cluster extends EventEmitter {
  #options
  #listen
  /** That workers submit to, and where they find it. */
  #pool
  #served = null
  /** By generation: what runs, and what is to. */
  #commands = new Map()
  #handle = null
  #note = 0
  /** By slot and incarnation: every process that has not ended. */
  #processes = new Map()
  /** The same by process id, which a spare keeps. */
  #pids = new Map()
  #workers = new Map()
  #started = null
  /** By generation: who waits for it. */
  #reloads = new Map()
  #scaling = 0
  /** `[holds, resolve, reject]` of those who wait for a state. */
  #waits = []
  #stopped = null
  #onStopped = null
  #last = null

  constructor(options) {
    super()
    const { workers, spares, listen = [], balance, readyTimeout, minReady, drainTimeout, killGrace, ...others } = checkOptions(options)
    const { heartbeat, maxAge, maxMemory, maxRequests, metrics, log, pool, ...rest } = others
    const { exec, args, execArgv, env, cwd, limits, ...last } = rest
    const { nice, pinCpus, uid, gid, oomScore, ...unknown } = last
    checkKnown(unknown, KNOWN)
    this.#commands.set(1, { exec, args, execArgv, env, cwd })
    checkCommand(this.#commands.get(1))
    if (workers !== undefined && workers !== 'auto' && typeof workers !== 'number') throw wrongType('workers', "number or 'auto'", workers)
    if (spares !== undefined && typeof spares !== 'number') throw wrongType('spares', 'number', spares)
    if (!Array.isArray(listen)) throw wrongType('listen', 'array of ports, addresses or { host, port, path, fd }', listen)
    this.#listen = listen.map((at) => addressOf(at))
    broker.checkPool(pool, uid)
    this.#pool = pool
    this.#options = {
      workers: workers === 'auto' ? undefined : workers,
      spares,
      balance,
      readyTimeout,
      minReady,
      drainTimeout,
      killGrace,
      maxAge,
      maxMemory,
      maxRequests,
      nice,
      pinCpus,
      uid,
      gid,
      oomScore,
      limits: checkLimits(limits),
      metrics:
        metrics === undefined || metrics === null ? undefined : addressOf(metrics, 'metrics', 'port, address or { host, port, path, fd }'),
      ...checkLog(log),
      ...checkHeartbeat(heartbeat),
    }
    native.clusterCheck(this.#options, this.#listen)
    const changed = (name) => {
      // Behind this turn's other listeners, so that none misses the first message.
      if (SAID.includes(name)) queueMicrotask(() => this.#hear())
      if (name === 'log') queueMicrotask(() => this.#handle !== null && native.clusterLines(this.#handle, this.#logged))
    }
    super.on('newListener', changed)
    super.on('removeListener', changed)
  }

  /** Binds, starts the workers, and resolves when all are ready. */
  start() {
    if (this.#started !== null) return this.#started
    this.#started = this.#start()
    return this.#started
  }

  async #start() {
    this.#note = newNote()
    onNote(this.#note, () => this.#onEvents())
    try {
      if (this.#pool !== undefined) this.#served = broker.serve(this.#pool)
      const lines = this.#logged || this.#options.log !== undefined ? this.#logged : null
      this.#handle = native.clusterStart(this.#options, this.#listen, this.#note, ...this.#command(this.#commands.get(1)), lines)
    } catch (error) {
      offNote(this.#note)
      this.#served?.close()
      throw error
    }
    begin()
    try {
      await this.#until((stats) => stats.wanted > 0 && this.#areReady(stats, stats.wanted))
    } catch (error) {
      // A stop has seen to that already.
      if (this.#handle !== null) await this.#end(null)
      throw error
    }
  }

  /** Somebody listens for what workers print. */
  get #logged() {
    return this.listenerCount('log') > 0
  }

  /** What native code takes of a command. */
  #command(command) {
    const [args, variables, cwd] = commandOf(command)
    variables.push(broker.VARIABLE, this.#served?.path)
    return [args, variables, cwd]
  }

  /** So many are, and this side has heard of it. */
  #areReady(stats, workers) {
    const isReady = ({ slot, state }) => slot < FIRST_SPARE && (state === 'ready' || state === 'unresponsive')
    return stats.ready >= workers && [...this.#processes.values()].filter(isReady).length >= workers
  }

  #until(holds) {
    return new Promise((resolve, reject) => {
      this.#waits.push([holds, resolve, reject])
      this.#look()
    })
  }

  /** Who waits for what is so by now. */
  #look() {
    if (this.#waits.length === 0 || this.#handle === null) return
    const stats = this.stats
    this.#waits = this.#waits.filter(([holds, resolve]) => {
      if (!holds(stats)) return true
      resolve()
      return false
    })
  }

  #fail(error) {
    for (const [, , reject] of this.#waits.splice(0)) reject(error)
  }

  #onEvents() {
    if (this.#handle === null) return
    for (const [what, ...rest] of native.clusterEvents(this.#handle)) {
      this.#tell(() => this.#onEvent(what, rest))
    }
    this.#look()
  }

  /** A listener's own error is its own. */
  #tell(call) {
    try {
      call()
    } catch (error) {
      report(error)
    }
  }

  /** The ready worker of a slot: the last one, while two have it. */
  #show(slot) {
    const ready = [...this.#processes.values()].filter((worker) => worker.slot === slot && worker.state === 'ready')
    if (ready.length > 0) this.#workers.set(slot, ready.at(-1))
    else this.#workers.delete(slot)
  }

  #workerOf([slot, generation, incarnation, pid]) {
    const key = `${slot}.${incarnation}`
    let worker = this.#processes.get(key)
    if (worker === undefined) {
      const load = (...now) => (this.#handle === null ? null : native.clusterLoad(this.#handle, ...now))
      worker = new ClusterWorker(slot, generation, incarnation, pid, load)
      this.#processes.set(key, worker)
    }
    return worker
  }

  /** Who has printed a line: what a process prints that a worker has left behind comes after its end. */
  #printerOf([slot, generation, incarnation, pid]) {
    const found = this.#pids.get(pid)
    if (found !== undefined) return found
    const ended = new ClusterWorker(slot, generation, incarnation, pid, () => null)
    ended.state = 'exited'
    return ended
  }

  /** Its channel. That keeps nothing alive: the cluster does. */
  #connect(worker, incarnation) {
    const channel = opened(native.clusterChannel(this.#handle, worker.slot, worker.generation, incarnation)).unref()
    channel.on('messageerror', (error) => this.emit('messageerror', worker, error))
    channel.on('drain', () => this.emit('drain', worker))
    ClusterWorker.connect(worker, channel)
    this.#hearOf(worker)
  }

  #hear() {
    for (const worker of this.#processes.values()) this.#hearOf(worker)
  }

  /** What nobody listens for waits in the channel, and holds the worker back. */
  #hearOf(worker) {
    const channel = ClusterWorker.channelOf(worker)
    for (const name of SAID) {
      const [wanted, heard] = [this.listenerCount(name) > 0, channel.listenerCount(name) > 0]
      if (wanted && !heard) channel.on(name, (...said) => this.emit(name, worker, ...said))
      else if (heard && !wanted) channel.removeAllListeners(name)
    }
  }

  /** Whom a slot means: the ready worker that was started last, else one that starts, else one that drains. */
  #at(slot) {
    let found
    for (const worker of this.#processes.values()) {
      if (worker.slot === slot && (found === undefined || STANDING.indexOf(worker.state) >= STANDING.indexOf(found.state))) found = worker
    }
    if (found === undefined) throw fail('NotFound', 'slot has no worker', { slot })
    return found
  }

  /** Sends a message to the worker of `slot`. False: it waits in this process until that one has room for it; `Full` when too much does. */
  send(slot, message, options) {
    this.#open()
    return this.#at(slot).send(message, options)
  }

  /** Sends a copy of a message to every worker that lives; those that did not get it, and why. */
  broadcast(message, options) {
    this.#open()
    const { transfer, fds } = checkSend(options)
    if (transfer?.length > 0)
      throw fail('Invalid', 'a buffer moves to one worker: a broadcast copies bytes only', { buffers: transfer.length })
    const missed = []
    for (const worker of this.#processes.values()) {
      try {
        sentCopy(ClusterWorker.channelOf(worker), message, fds)
      } catch (error) {
        // The message's own fault, and so everybody's.
        if (!MISSES.includes(error.code)) throw error
        missed.push({ worker, error })
      }
    }
    return missed
  }

  /** The reply of the worker of `slot`, or its error. */
  async request(slot, message, options) {
    this.#open()
    return this.#at(slot).request(message, options)
  }

  #onEvent(what, rest) {
    switch (what) {
      case 'fork': {
        const worker = this.#workerOf(rest)
        this.#pids.set(worker.pid, worker)
        this.#connect(worker, rest[2])
        this.emit('fork', worker)
        break
      }
      case 'log': {
        const [stream, text, more] = rest.slice(4)
        this.emit('log', this.#printerOf(rest), { stream, text, more })
        break
      }
      case 'online':
        this.emit('online', this.#workerOf(rest))
        break
      case 'listening':
        this.emit('listening', this.#workerOf(rest), rest[4])
        break
      case 'spare': {
        const worker = this.#workerOf(rest)
        worker.state = 'spare'
        this.emit('spare', worker)
        break
      }
      case 'activated': {
        const [slot, , incarnation, , spareSlot, spareIncarnation] = rest
        const key = `${spareSlot}.${spareIncarnation}`
        const worker = this.#processes.get(key)
        this.#processes.delete(key)
        ClusterWorker.place(worker, slot, incarnation)
        this.#processes.set(`${slot}.${incarnation}`, worker)
        worker.state = 'ready'
        this.#show(slot)
        this.emit('ready', worker)
        break
      }
      case 'ready':
      case 'responsive': {
        const worker = this.#workerOf(rest)
        worker.state = worker.slot < FIRST_SPARE ? 'ready' : 'spare'
        this.#show(worker.slot)
        this.emit(what, worker)
        break
      }
      case 'unresponsive': {
        const worker = this.#workerOf(rest)
        worker.state = 'unresponsive'
        this.#show(worker.slot)
        this.emit('unresponsive', worker, { cause: rest[4], stack: rest[5] })
        break
      }
      case 'expired':
        this.emit('expired', this.#workerOf(rest), { reason: rest[4] })
        break
      case 'draining': {
        const worker = this.#workerOf(rest)
        worker.state = 'draining'
        this.#show(worker.slot)
        this.emit('draining', worker, { cause: rest[4] })
        break
      }
      case 'exit': {
        const worker = this.#workerOf(rest)
        const [exitCode, number, cause, forced, oom, text, uptime] = rest.slice(4)
        // What it has said comes before its end.
        finished(ClusterWorker.channelOf(worker))
        worker.state = 'exited'
        this.#processes.delete(`${rest[0]}.${rest[2]}`)
        this.#pids.delete(worker.pid)
        this.#show(worker.slot)
        const signal = number === null ? null : signalName(number)
        this.emit('exit', worker, { exitCode, signal, cause, forced, oom, text, uptime })
        break
      }
      case 'startError':
        this.#processes.delete(`${rest[0]}.${rest[2]}`)
        this.emit('startError', new OffloopError(rest[4], rest[5]))
        break
      case 'backOff':
        this.emit('backOff', { slot: rest[0], delay: rest[1] })
        break
      case 'reloading':
        this.emit('reloading', { generation: rest[0] })
        break
      case 'rollback':
        this.emit('rollback', { generation: rest[0], error: new OffloopError(rest[1], rest[2]) })
        break
      case 'reloaded': {
        const [generation, replaced, forced, took] = rest
        const report = { generation, replaced, forced, took }
        for (const past of this.#commands.keys()) if (past < generation) this.#commands.delete(past)
        this.#reloads.get(generation).resolve(report)
        this.#reloads.delete(generation)
        this.emit('reload', report)
        break
      }
      case 'reloadFailed': {
        const error = new OffloopError(rest[1], rest[2])
        this.#reloads.get(rest[0]).reject(error)
        this.#reloads.delete(rest[0])
        this.#commands.delete(rest[0])
        this.emit('reloadFailed', { generation: rest[0], error })
        break
      }
      case 'startFailed':
        this.#fail(new OffloopError(rest[0], rest[1]))
        break
      case 'degraded':
        this.#fail(fail('Degraded', 'too many workers fail', { failures: rest[0] }))
        this.emit('degraded', { failures: rest[0] })
        break
      case 'warning':
        this.emit('warning', new OffloopError(rest[0], rest[1]))
        break
      case 'recovered':
        this.emit('recovered')
        break
      case 'stopped':
        this.#onStopped?.()
        break
    }
  }

  #open() {
    if (this.#handle === null) throw fail('Closed', this.#started === null ? 'the cluster was not started' : 'the cluster has ended')
    return this.#handle
  }

  static handleOf(cluster) {
    return cluster.#open()
  }

  /**
   * Replaces all workers by a new generation, one after the other, without being fewer at any time. `exec`, `args`, `execArgv`, `env` and `cwd` are those
   * of the new one; each that is not given stays.
   */
  async reload(options = {}) {
    const { exec, args, execArgv, env, cwd, ...unknown } = checkOptions(options)
    checkKnown(unknown, COMMAND.join(' '))
    const handle = this.#open()
    // Of the generation that runs, which may be a later one than this side has heard of.
    const runs = this.stats.generation
    const command = changed(this.#commands.get(runs), { exec, args, execArgv, env, cwd })
    checkCommand(command)
    const generation = native.clusterReload(handle, runs, ...this.#command(command))
    this.#commands.set(generation, command)
    return new Promise((resolve, reject) => this.#reloads.set(generation, { resolve, reject }))
  }

  /** So many workers from now on; resolves when they are ready, and those that leave have ended. */
  async scale(workers) {
    if (typeof workers !== 'number') throw wrongType('workers', 'number', workers)
    native.clusterScale(this.#open(), workers)
    if (this.stats.degraded) throw fail('Degraded', 'too many workers fail')
    this.#scaling = workers
    // A later call may have another number in mind.
    const isDone = (stats) => stats.wanted === workers && stats.live <= workers && this.#areReady(stats, workers)
    await this.#until((stats) => this.#scaling !== workers || isDone(stats))
  }

  /** Ends all workers, which have `grace` ms to finish what they do (default: `drainTimeout`); 0: at once. */
  async stop(options = {}) {
    const given = closeGrace(options)
    if (this.#started === null) this.#started = Promise.reject(fail('Closed', 'the cluster was stopped before it was started'))
    this.#started.catch(() => {})
    if (this.#handle === null) return this.#stopped ?? undefined
    return this.#end(given === 0 ? null : given === Number.POSITIVE_INFINITY ? (this.#options.drainTimeout ?? 30_000) : given)
  }

  #end(grace) {
    native.clusterStop(this.#handle, grace)
    this.#stopped ??= new Promise((resolve) => {
      this.#onStopped = resolve
    }).then(() => {
      this.#last = this.stats
      const closed = fail('Closed', 'the cluster was stopped')
      this.#fail(closed)
      for (const { reject } of this.#reloads.values()) reject(closed)
      this.#reloads.clear()
      offNote(this.#note)
      this.#served?.close()
      native.clusterRelease(this.#handle)
      this.#handle = null
      end()
      this.#tell(() => this.emit('stopped'))
    })
    return this.#stopped
  }

  /** Ends the worker of `slot` at once; another takes its place. */
  kill(slot) {
    const handle = this.#open()
    const worker = this.#workers.get(slot)
    if (worker === undefined) throw fail('NotFound', 'slot has no ready worker', { slot })
    native.clusterKill(handle, worker.slot, worker.generation, ClusterWorker.incarnationOf(worker))
  }

  /** The ready workers by slot. */
  get workers() {
    return this.#workers
  }

  /** Where it listens. */
  get addresses() {
    return this.#handle === null ? [] : native.clusterAddresses(this.#handle)
  }

  /** Where metrics are to be had; null without the option, and before the start. */
  get metricsAddress() {
    return this.#handle === null ? null : native.clusterMetricsAddress(this.#handle)
  }

  get stats() {
    if (this.#handle !== null) return Object.fromEntries(native.clusterStats(this.#handle))
    if (this.#last !== null) return this.#last
    throw fail('Closed', 'the cluster was not started')
  }

  [Symbol.asyncDispose]() {
    return this.stop()
  }
}

module.exports = { Cluster }
