'use strict'
// This process as the worker of a Cluster: its servers listen on the cluster's sockets, its event loop shows that it turns, and when it is to
// leave its servers finish what they do. lib/clusters.cjs is the other side.

const { EventEmitter, once } = require('node:events')
const fs = require('node:fs')
const net = require('node:net')
const { constants } = require('node:os')
const path = require('node:path')
const threads = require('node:worker_threads')
const native = require('./native.cjs')
const { fail, typeName } = require('./error.cjs')
const { newNote, onNote, offNote } = require('./completion.cjs')
const { textOf } = require('./functions.cjs')

/** Requests that have been handed over are answered. */
const answered = (channel) => require('./channel.cjs').answered(channel)

/** Of the flags that a server listens with: no connection of version 4. */
const IPV6_ONLY = 1

let member = null
/** Servers have been told to take nothing more. */
let finishing = false
/** Servers that listen, and those that drain. */
const servers = new Set()
/** By address: the servers that have the sockets there, in their order. */
const held = new Map()

/** What of the channel is an event of the worker. */
const SAID = ['message', 'request', 'messageerror']

/** Requests of which the cluster is told at once; fewer wait for the next beat. */
const MANY = 64

class ClusterMember extends EventEmitter {
  #handle
  #channel = null
  #pool
  #poolPath
  /** By name: what hands over the channel's events. */
  #forwards = new Map()
  /** The cluster accepts, and passes connections on. */
  #passed
  #ready = false
  #drains = null
  #callbacks = []
  /** What functions of `onDrain` have failed with. */
  #errors = []
  /** Requests of which the cluster has not heard. */
  #served = 0
  /** It was a spare when it was looked at last, of this slot; and what begins when it takes a worker's place. */
  #waits
  #started
  #waiting = []

  constructor([handle, slot, generation, beat, fds, passed, spare]) {
    super()
    this.#handle = handle
    this.#passed = passed
    this.#waits = spare
    this.#started = slot
    /** The (re)load that it belongs to, from 1 on. */
    this.generation = generation
    this.pid = process.pid
    this.#poolPath = process.env[POOL]
    this.threadId = threads.threadId
    /** The sockets of the cluster's `listen`. */
    this.fds = fds
    // Twice as often as is looked at; it keeps no process alive.
    setInterval(() => {
      native.memberBeat(handle, beat / 2)
      this.#tellServed()
    }, beat / 2).unref()
    const changed = (name) => {
      if (SAID.includes(name)) this.#hear(name)
    }
    super.on('newListener', (name) => queueMicrotask(() => changed(name)))
    super.on('removeListener', changed)
    process.on('uncaughtExceptionMonitor', (error) => {
      if (process.listenerCount('uncaughtException') === 0) native.memberFail(handle, textOf(error))
    })
  }

  /** Its place, from 0 on; that of a spare is 1,024 or higher until it takes a worker's. */
  get slot() {
    return native.memberPlace(this.#handle) ?? this.#started
  }

  /** It waits for the place of a worker. */
  get spare() {
    return native.memberPlace(this.#handle) === null
  }

  /** To the process of the cluster. It keeps this one alive while somebody listens for what comes on it. */
  get channel() {
    // Loaded by those that use it.
    this.#channel ??= require('./channel.cjs').opened(native.memberChannel(this.#handle))
    return this.#channel
  }

  /** That which the process of the cluster has for all workers; null where it has none. */
  get pool() {
    // Loaded by those that use it.
    if (this.#pool === undefined) this.#pool = this.#poolPath === undefined ? null : require('./broker.cjs').ClusterPool.at(this.#poolPath)
    return this.#pool
  }

  /** Sends a message to the process of the cluster, which waits here where that has no room for it; false then. */
  send(message, options) {
    return this.channel.send(message, options)
  }

  /** Its reply, or its error. */
  request(message, options) {
    return this.channel.request(message, options)
  }

  #hear(name) {
    const [wanted, heard] = [this.listenerCount(name) > 0, this.#forwards.has(name)]
    if (wanted && !heard) {
      const forward = (...said) => this.emit(name, ...said)
      this.#forwards.set(name, forward)
      this.channel.on(name, forward)
    } else if (heard && !wanted) {
      this.channel.removeListener(name, this.#forwards.get(name))
      this.#forwards.delete(name)
    }
  }

  /** What was sent is on its way, or there is nobody to send it to. */
  async #sent() {
    const channel = this.#channel
    if (channel === null || channel.closed || channel.stats.queued === 0) return
    const over = new AbortController()
    await Promise.race(['drain', 'close'].map((name) => once(channel, name, { signal: over.signal })))
    over.abort()
  }

  /** Counts `n` requests for the cluster's `maxRequests`. Those of HTTP are counted by themselves. */
  served(n = 1) {
    if (!Number.isSafeInteger(n) || n < 0) throw fail('Invalid', 'requests are counted by whole numbers from 0 on', { n: String(n) })
    this.#served += n
    if (this.#served >= MANY) this.#tellServed()
  }

  #tellServed() {
    if (this.#served === 0) return
    native.memberServed(this.#handle, this.#served)
    this.#served = 0
  }

  /** Says that it takes work. It is said by itself when the first server listens. */
  ready() {
    if (this.#ready) return
    this.#ready = true
    // A turn later: what the script does now is a part of its start.
    setImmediate(() => native.memberReady(this.#handle))
  }

  /** It is to finish what it has. */
  get draining() {
    return this.#drains !== null
  }

  /** Calls `fn` when the worker is to finish what it has; what it returns is waited for, as long as the cluster's `drainTimeout` allows. */
  onDrain(fn) {
    if (typeof fn !== 'function') throw fail('Invalid', 'what is called at the drain is no function', { got: typeName(fn) })
    if (this.#drains === null) this.#callbacks.push(fn)
    else this.#drains = Promise.allSettled([this.#drains, this.#call(fn)])
  }

  async #call(fn) {
    try {
      await fn()
    } catch (error) {
      // Told at the end: now it would cut the requests that are in flight.
      this.#errors.push(error)
    }
  }

  /**
   * A socket that listens at `address`, which all workers share; `server` has it until it closes. Where connections are passed it is a handle for the server in place of an fd, and
   * `address` may be the index of a socket of the cluster's `listen`.
   */
  listen(server, address, queue) {
    const all = held.get(address) ?? []
    held.set(address, all)
    // Connections may outlive what accepted them.
    const free = all.findIndex((other) => !other.listening)
    const nth = free >= 0 ? free : all.length
    const own = this.#passed ? new Intake(this.#handle, address, nth, queue) : native.memberListen(this.#handle, address, nth, queue)[0]
    all[nth] = server
    return own
  }

  /** What connections of the fd come over; undefined where that is the fd itself. */
  indexOf(fd) {
    const index = this.#passed ? this.fds.indexOf(fd) : -1
    return index < 0 ? undefined : index
  }

  /** A server listens. One that comes late takes nothing. */
  add(server) {
    servers.add(server)
    if (this.#drains !== null) this.#drains = Promise.allSettled([this.#drains, finish(server)])
  }

  /** It may be no spare any more, or be to leave. */
  look() {
    if (this.#waits && !this.spare) {
      this.#waits = false
      if (process.env.OFFLOOP_SLOT !== undefined) process.env.OFFLOOP_SLOT = String(this.slot)
      for (const begin of this.#waiting.splice(0)) begin()
      this.emit('active')
    }
    this.drain()
  }

  /**
   * The handle that `server` is about to make takes no connection before this spare takes a worker's place, and the server is told that it listens. Returns what is to be called when the
   * handle is made.
   */
  defer(server) {
    if (!this.#waits) return () => {}
    let own = server._handle
    const set = (handle) => {
      own = handle
      if (handle) this.#putOff(handle)
    }
    Object.defineProperty(server, '_handle', { configurable: true, enumerable: true, get: () => own, set })
    return () => Object.defineProperty(server, '_handle', { configurable: true, enumerable: true, writable: true, value: own })
  }

  #putOff(handle) {
    // Keeps the process alive, as a handle that listens does.
    const timer = setInterval(() => {}, FOREVER)
    let over = false
    handle.listen = (queue) => {
      this.#waiting.push(() => {
        if (over) return
        clearInterval(timer)
        delete handle.listen
        delete handle.close
        const errno = handle.listen(queue)
        if (errno !== 0) throw fail('Os', 'a server of what was a spare cannot listen', { errno: -errno })
      })
      return 0
    }
    handle.close = function (...args) {
      over = true
      clearInterval(timer)
      delete this.close
      return this.close(...args)
    }
  }

  drain() {
    if (this.#drains !== null || !native.memberDraining(this.#handle)) return
    this.#drains = Promise.allSettled([...[...servers].map(finish), ...this.#callbacks.map((fn) => this.#call(fn))])
    this.#leave()
  }

  async #leave() {
    // What is added meanwhile is waited for, too.
    for (let seen = null; seen !== this.#drains; ) {
      seen = this.#drains
      await seen
    }
    if (this.#errors.length > 0) {
      native.memberDrained(this.#handle)
      // As an error that nobody caught.
      setImmediate(() => {
        throw this.#errors[0]
      })
      return
    }
    if (this.#channel !== null) await answered(this.#channel)
    // What is left takes no time.
    native.memberDrained(this.#handle)
    await Promise.all([...[process.stdout, process.stderr].map(flushed), this.#sent()])
    process.exit()
  }
}

/** Most ms of a timer. */
const FOREVER = 2 ** 31 - 1
/** Connections of one turn. */
const BATCH = 16
/** Of a handle that is a connection. */
const SOCKET = 0

/** By whether it is of a unix socket: what the runtime makes handles of connections by. */
const handles = new Map()

function handleOf(fd, isUnix) {
  const Handle = handles.get(isUnix)
  if (Handle !== undefined) {
    const handle = new Handle(SOCKET)
    if (handle.open(fd) === 0) return handle
  }
  // A socket that reads nothing, for the sake of its handle, which gets another.
  const socket = new net.Socket({ fd, manualStart: true })
  const handle = socket._handle
  socket._handle = null
  handles.set(isUnix, handle.constructor)
  return handle
}

/**
 * The handle of a server whose connections are passed: what `net.Server` asks of a handle, as the runtime itself has it for the servers of `node:cluster`. The server sets
 * `onconnection`, which makes a socket of each connection, counts it, and heeds `maxConnections`.
 */
class Intake {
  #member
  #intake
  #note = newNote()
  #where
  /** Keeps the process alive, as a server that listens does. */
  #timer = null

  constructor(member, address, nth, queue) {
    this.#member = member
    ;[this.#intake, this.#where] = native.memberIntake(member, this.#note, address, nth, queue)
    // Of a unix socket the server knows the path itself.
    if (this.#isUnix) this.getsockname = undefined
    onNote(this.#note, () => this.#take())
    this.ref()
  }

  get #isUnix() {
    return this.#where.startsWith('unix:')
  }

  #take() {
    for (let i = 0; i < BATCH; i++) {
      const fd = native.intakeTake(this.#intake)
      if (fd === null) return
      this.onconnection(0, this.#counted(handleOf(fd, this.#isUnix)))
    }
    // Others have their turn first.
    setImmediate(() => this.#take())
  }

  /** Its end is told to the cluster. Whoever wraps a handle (TLS) closes it, too. */
  #counted(handle) {
    const member = this.#member
    handle.close = function (...args) {
      delete this.close
      native.memberClosed(member)
      return this.close(...args)
    }
    return handle
  }

  listen() {
    return 0
  }

  /** Of a unix socket: `readableAll` and `writableAll` of the server. */
  fchmod(mode) {
    const file = this.#where.slice('unix:'.length)
    try {
      fs.chmodSync(file, (fs.statSync(file).mode & 0o777) | (mode & 1 ? 0o444 : 0) | (mode & 2 ? 0o222 : 0))
      return 0
    } catch (error) {
      return error.errno
    }
  }

  getsockname(out) {
    const [, host, port] = this.#where.match(/^\[?(.*?)\]?:(\d+)$/)
    const address = host === '' ? '::' : host
    Object.assign(out, { address, family: address.includes(':') ? 'IPv6' : 'IPv4', port: Number(port) })
    return 0
  }

  ref() {
    this.#timer ??= setInterval(() => {}, FOREVER)
  }

  unref() {
    clearInterval(this.#timer)
    this.#timer = null
  }

  hasRef() {
    return this.#timer !== null
  }

  close(then) {
    this.unref()
    offNote(this.#note)
    native.intakeLeave(this.#intake)
    if (then !== undefined) setImmediate(() => then.call(this))
  }
}

/** What was written to a pipe is on its way. */
const flushed = (stream) => new Promise((resolve) => (stream.writableLength > 0 ? stream.write('', resolve) : resolve()))

/** Takes no connection any more, and resolves when the last one has ended. Idle ones stay until their next request, which is told that it is the last. */
function finish(server) {
  return new Promise((resolve) => {
    if (answers(server)) tellLast()
    for (const session of server[SESSIONS] ?? []) session.close()
    // Not that of http: it would close idle connections, on which a request may be on its way.
    net.Server.prototype.close.call(server, resolve)
  })
}

/** Events with a request and its response. */
const REQUESTS = ['request', 'checkContinue', 'checkExpectation']

let tells = false
/** From when this worker finishes, each answer is its connection's last, whatever the application says: that to a request which has begun before, too. */
function tellLast() {
  if (tells) return
  tells = true
  // Not those of HTTP/2, whose sessions are told.
  const answer = require('node:http').ServerResponse.prototype
  const { writeHead } = answer
  answer.writeHead = function (...args) {
    if ((finishing || member.draining) && args[0] !== 101 && !this.headersSent) last(this, args)
    return writeHead.apply(this, args)
  }
}

/** `args`: those of `writeHead`. */
function last(response, args) {
  const isConnection = (name) => String(name).toLowerCase() === 'connection'
  const headers = args.at(-1)
  if (Array.isArray(headers)) {
    const pairs = headers.flatMap((one) => (Array.isArray(one) ? one : [one]))
    args[args.length - 1] = pairs.filter((_, i) => !isConnection(pairs[i - (i % 2)]))
  } else if (typeof headers === 'object' && headers !== null) {
    args[args.length - 1] = Object.fromEntries(Object.entries(headers).filter(([name]) => !isConnection(name)))
  }
  response.setHeader('Connection', 'close')
}

const SESSIONS = Symbol('offloop.sessions')

const answers = (server) => REQUESTS.some((event) => server.listenerCount(event) > 0)

/** Counts requests, and keeps sessions of HTTP/2, which end with a GOAWAY. */
function watch(server) {
  // Before the application's middleware takes `writeHead` as it is.
  if (answers(server)) tellLast()
  // Only of a server that has listeners: without one it answers otherwise.
  for (const event of REQUESTS) if (server.listenerCount(event) > 0) server.on(event, () => member.served())
  server[SESSIONS] = new Set()
  server.on('session', (session) => {
    server[SESSIONS].add(session)
    session.once('close', () => server[SESSIONS].delete(session))
    if (member.draining) session.close()
  })
}

/** Where a server listens, as the cluster writes it; undefined for what each worker has for itself. */
function addressOf(address, port, type, flags) {
  if (type === -1)
    return typeof address === 'string' && address !== '' && !address.startsWith('\0') ? `unix:${path.resolve(address)}` : undefined
  if (address === null || address === undefined || address === '') return `:${port}`
  if (type !== 6) return `${address}:${port}`
  return address === '::' && (flags & IPV6_ONLY) === 0 ? `:${port}` : `[${address}]:${port}`
}

/** As the runtime reports what a bind fails with. */
function listenError(error, address, port) {
  const code = codeOf(error)
  const where = port > 0 ? `${address ?? '::'}:${port}` : String(address)
  const text = code === 'EADDRINUSE' ? 'address already in use' : code === 'EACCES' ? 'permission denied' : error.message
  return Object.assign(new Error(`listen ${code}: ${text} ${where}`, { cause: error }), {
    code,
    errno: error.errno === undefined ? undefined : -error.errno,
    syscall: 'listen',
    address: address ?? '::',
    ...(port > 0 ? { port } : {}),
  })
}

const codeOf = ({ errno }) => Object.keys(constants.errno).find((name) => constants.errno[name] === errno) ?? 'EINVAL'

/** Servers of this process listen on the cluster's sockets. */
function patch() {
  const listen = net.Server.prototype._listen2
  net.Server.prototype._listen2 = function (address, port, type, queue, fd, flags) {
    const isOpen = typeof fd === 'number' && fd >= 0
    const where = isOpen ? member.indexOf(fd) : addressOf(address, port, type, flags)
    let own = isOpen ? fd : undefined
    if (where !== undefined) {
      try {
        own = member.listen(this, where, queue)
      } catch (error) {
        process.nextTick(() => this.emit('error', listenError(error, address, port)))
        return
      }
    }
    if (own === undefined) listen.call(this, address, port, type, queue, fd, flags)
    else if (typeof own === 'number') {
      const made = where !== undefined || member.fds.includes(own) ? member.defer(this) : () => {}
      listen.call(this, null, null, null, queue, own, flags)
      made()
    } else {
      this._handle = own
      listen.call(this, address, port, type, queue, fd, flags)
    }
    if (!this._handle) return
    member.add(this)
    this.once('close', () => servers.delete(this))
    if (this[SESSIONS] === undefined) watch(this)
    this.once('listening', () => member.ready())
    if (finishing) this.once('listening', () => finish(this))
  }
}

/** `VARIABLE` of broker.cjs, which is loaded by those that use it. */
const POOL = 'OFFLOOP_POOL'
const LISTEN = ['LISTEN_FDS', 'LISTEN_PID', 'LISTEN_FDNAMES']

/** Attaches, if a cluster started this process. A program that is `unmodified` may look for the sockets itself; LISTEN_PID keeps them from its children. */
function enter(unmodified = false) {
  if (member !== null || !threads.isMainThread || process.env.OFFLOOP_CLUSTER === undefined) return
  const note = newNote()
  const attached = native.memberAttach(note)
  if (attached === null) return
  member = new ClusterMember(attached)
  onNote(note, () => member.look())
  // Programs that this one starts are nobody's worker.
  for (const name of ['OFFLOOP_CLUSTER', 'OFFLOOP_SUPERVISOR', POOL, ...(unmodified ? [] : LISTEN)]) delete process.env[name]
  patch()
}

/** Every server of this process finishes what it has, and takes no connection any more; nor does one that listens later. */
function finishAll() {
  finishing = true
  return Promise.all([...servers].map(finish))
}

module.exports = { enter, finishAll, current: () => member }
