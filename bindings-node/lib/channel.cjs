'use strict'
// Channel: events and promises of what the core's channel brings.

const { setImmediate, setTimeout, clearTimeout, MAX_TIMER } = require('./clock.cjs')
const { EventEmitter } = require('node:events')
const { close: closeFd } = require('node:fs')
const native = require('./native.cjs')
const { fail, aborted, typeName, checkOptions, checkKnown } = require('./error.cjs')
const { TransferBuffer, movingBuffers, NOTHING } = require('./buffer.cjs')
const { checkWait, isSpent, inNextTurn } = require('./waits.cjs')
const { begin, end, newNote, onNote, offNote, listen, unlisten, report } = require('./completion.cjs')
const { pathOf } = require('./ring.cjs')

const MADE_HERE = Symbol('made here')
// Kinds of events; the same numbers as in src/channel.rs.
const [MESSAGE, REQUEST, REPLY, NO_REPLY, DRAINED, UNREADABLE, MORE] = [1, 2, 3, 4, 5, 6, 7]
/** ms until the next attempt after fds or memory were missing; nothing is lost meanwhile. */
const PAUSE = 100
/** ms that what is queued has to be sent after `close`. */
const GRACE = 5000
/** ms until a listener whose queue is full is asked again. */
const CONNECT_RETRY = 5
const MESSAGES = ['message', 'request']
const RECEIVES = [...MESSAGES, 'close']
const FULL = fail('Full', '').code

const closedHere = () => fail('Closed', 'channel was closed')

/** Numbers of open files, from numbers and from what has one: a `FileHandle`, a `net.Socket`, a `net.Server`. */
function fdsOf(list) {
  if (list === undefined || list === null) return undefined
  if (!Array.isArray(list)) throw fail('Invalid', 'fds are not a list', { got: typeName(list) })
  return list.map((item) => (typeof item === 'object' && item !== null ? (item.fd ?? item._handle?.fd) : item))
}

/** Closes what nobody asked for. */
function drop(fds) {
  for (const fd of fds) closeFd(fd, () => {})
}

/** `{ transfer, fds }`, or the list of what moves. What moves is in the value: a `TransferBuffer` always does. */
function checkSend(options) {
  if (options === undefined || options === null) return {}
  const { transfer: named, fds, ...unknown } = Array.isArray(options) ? { transfer: options } : checkOptions(options)
  checkKnown(unknown, 'transfer fds')
  const transfer = [...(named ?? [])]
  for (const item of transfer) {
    if (!(item instanceof TransferBuffer)) {
      throw fail('Invalid', 'only a TransferBuffer moves between processes; other bytes are copied', { got: typeName(item) })
    }
  }
  return { transfer, fds: fdsOf(fds) }
}

function sizes(options, known = '') {
  const { capacity, maxMessage, maxQueued, ...unknown } = checkOptions(options ?? {})
  checkKnown(unknown, `${known}capacity maxMessage maxQueued`)
  return [capacity, maxMessage, maxQueued]
}

/** What is to be answered. An answer that was not sent leaves it open. */
class ChannelRequest {
  #answer

  constructor(value, fds, answer) {
    this.value = value
    this.fds = fds
    this.#answer = answer
  }

  reply(value, options) {
    this.#once(value, checkSend(options), false)
  }

  fail(error) {
    this.#once(error, {}, true)
  }

  #once(value, given, failed) {
    const answer = this.#answer
    if (answer === null) throw fail('Invalid', 'request was answered before')
    // First: a getter of the value may come here again.
    this.#answer = null
    try {
      answer(value, given, failed)
    } catch (error) {
      this.#answer = answer
      throw error
    }
  }
}

let opened
let finished
let sentCopy
let answered

class Channel extends EventEmitter {
  #handle
  #note = 0
  #asked = new Map()
  #started = false
  #listened = false
  #queued = false
  #ref = true
  #held = false
  #why = null
  #grace
  /** It ended before what had come was listened for. */
  #left = false
  #told = false
  /** Requests that were handed over and are not answered, and who waits for that. */
  #open = new Set()
  #settled
  /** The last counts of one whose fds and memory are let go of. */
  #last = null
  #resume = () => this.#receive()

  static {
    opened = (handle, note = 0) => new Channel(MADE_HERE, handle, note)
    finished = (channel) => channel.#finish()
    sentCopy = (channel, value, fds) => channel.#sendCopy(value, fds)
    answered = (channel) => channel.#answered()
  }

  constructor(key, handle, note) {
    if (key !== MADE_HERE) throw fail('Invalid', 'a Channel is made by pair, listen, connect or attach, not by new')
    super()
    this.#handle = handle
    this.#note = note
    const changed = (name) => {
      // Behind this turn's other listeners, so that none misses the first message.
      if (RECEIVES.includes(name)) queueMicrotask(() => this.#listen())
    }
    super.on('newListener', changed)
    super.on('removeListener', changed)
  }

  static pair(options) {
    return native.channelPair(...sizes(options)).map((handle) => opened(handle))
  }

  static attach(fd, options) {
    return opened(native.channelAttach(fd, ...sizes(options)))
  }

  static listen(path, options, fn) {
    if (fn === undefined) [options, fn] = [undefined, options]
    if (typeof fn !== 'function') throw fail('Invalid', 'fn is no function', { got: typeName(fn) })
    return new ChannelListener(MADE_HERE, native.listenerNew(pathOf(path), ...sizes(options)), fn)
  }

  static async connect(path, options) {
    const { timeout, signal, ...rest } = checkOptions(options ?? {})
    const wait = checkWait({ timeout, signal })
    const from = pathOf(path)
    const given = sizes(rest, 'timeout signal ')
    return new Promise((resolve, reject) => new Connecting(from, given, wait, resolve, reject))
  }

  /** The socket of an end that was not used yet, for a child to inherit. */
  get fd() {
    if (this.#why !== null) throw this.#why
    return native.channelSocket(this.#handle)
  }

  /** The same, given away: it belongs to whoever attaches it, in a worker thread for example. */
  detach() {
    const fd = this.fd
    native.channelDetach(this.#handle)
    this.#end(closedHere())
    return fd
  }

  get closed() {
    return this.#why !== null
  }

  get stats() {
    return this.#last === null ? native.channelStats(this.#handle) : { ...this.#last }
  }

  send(value, options) {
    if (this.#why !== null) throw this.#why
    const { transfer, fds } = checkSend(options)
    return this.#sent(movingBuffers((check) => native.channelPost(this.#handle, value, fds, check), transfer))
  }

  /** As `send`, for one of several who get the same: nothing moves. */
  #sendCopy(value, fds) {
    if (this.#why !== null) throw this.#why
    return this.#sent(movingBuffers((check) => native.channelPost(this.#handle, value, fds, check), NOTHING))
  }

  request(value, options) {
    try {
      if (this.#why !== null) throw this.#why
      const { timeout, signal, withFds = false, ...rest } = checkOptions(options ?? {})
      checkWait({ timeout, signal })
      const { transfer, fds } = checkSend(rest)
      const id = movingBuffers((check) => native.channelRequest(this.#handle, value, fds, timeout, check), transfer)
      return new Promise((resolve, reject) => {
        const one = { resolve, reject, withFds, signal, onAbort: undefined }
        if (signal !== undefined && signal !== null) {
          one.onAbort = () => {
            native.channelAbandon(this.#handle, id)
            this.#settle(id, true, aborted(signal.reason))
          }
          listen(signal, one.onAbort)
        }
        this.#asked.set(id, one)
        this.#start()
      })
    } catch (error) {
      return Promise.reject(error)
    }
  }

  close(options) {
    const { grace = GRACE, ...unknown } = checkOptions(options ?? {})
    checkKnown(unknown, 'grace')
    if (!(typeof grace === 'number' && grace >= 0)) {
      throw fail('Invalid', 'option has the wrong type or is out of range', {
        option: 'grace',
        value: String(grace),
        want: 'milliseconds from 0',
      })
    }
    this.#left = false
    if (this.#why !== null) return this.#letGo()
    const ended = native.channelClose(this.#handle)
    if (ended) return this.#end(closedHere())
    // What is queued is sent first; the end is told by what comes.
    this.#queued = true
    this.#start()
    const now = () => {
      if (this.#why !== null) return
      native.channelCloseNow(this.#handle)
      this.#end(closedHere())
    }
    clearTimeout(this.#grace)
    if (grace === 0) now()
    // The queue itself keeps the process alive, or nothing does.
    else if (grace <= MAX_TIMER) this.#grace = setTimeout(now, grace).unref()
  }

  ref() {
    this.#ref = true
    this.#keepAlive()
    return this
  }

  unref() {
    this.#ref = false
    this.#keepAlive()
    return this
  }

  [Symbol.dispose]() {
    this.close()
  }

  #sent(atOnce) {
    if (!atOnce) {
      this.#queued = true
      this.#start()
    }
    return atOnce
  }

  #listen() {
    const [listened, listens] = [this.#listened, this.#listens()]
    this.#listened = listens
    if (this.#why !== null) {
      if (listens && this.#told) this.#receive()
    } else if (RECEIVES.some((name) => this.listenerCount(name) > 0)) {
      this.#start()
      // What waits in the core is announced to nobody.
      if (listens && !listened) this.#soon()
    } else this.#keepAlive()
  }

  #start() {
    if (!this.#started) {
      this.#started = true
      // A handle that was watched before has its note for good.
      this.#note ||= newNote()
      onNote(this.#note, this.#resume)
      this.#soon()
    }
    this.#keepAlive()
  }

  #soon() {
    inNextTurn(this.#resume)
    // Somebody has to begin the turn.
    isSpent()
  }

  #listens() {
    return MESSAGES.some((name) => this.listenerCount(name) > 0)
  }

  #keepAlive() {
    const listens = RECEIVES.some((name) => this.listenerCount(name) > 0)
    const held = this.#ref && this.#started && this.#why === null && (listens || this.#asked.size > 0 || this.#queued)
    if (held === this.#held) return
    this.#held = held
    if (held) begin()
    else end()
  }

  /** Takes what is there, until the turn's time is used up. Messages stay in the core while nobody listens for them. */
  #receive() {
    while (this.#why === null || this.#left) {
      if (isSpent()) return inNextTurn(this.#resume)
      const listens = this.#listens()
      let event
      try {
        event = listens ? native.channelNext(this.#handle) : native.channelOutcome(this.#handle)
        if (event === null) return native.channelArm(this.#handle, this.#note)
      } catch (error) {
        // Without fds or memory nothing can be received now, and nothing is lost.
        if (error.errno === undefined) return this.#end(error, !listens)
        setTimeout(this.#resume, PAUSE)
        return
      }
      try {
        this.#dispatch(event)
      } catch (error) {
        // Of a listener: as from any event, and the next message is not lost by it.
        report(error)
      }
    }
  }

  /** The process at the other end is gone: what it has said is told now, as far as somebody listens, and nothing after that. */
  #finish() {
    while (this.#why === null) {
      let event = null
      try {
        event = this.#listens() ? native.channelNext(this.#handle) : native.channelOutcome(this.#handle)
      } catch {
        // The end, or no fds to receive more with.
      }
      if (event === null) break
      try {
        this.#dispatch(event)
      } catch (error) {
        report(error)
      }
    }
    if (this.#why !== null) return
    native.channelCloseNow(this.#handle)
    this.#end(fail('PeerDied', 'worker has ended'))
  }

  #dispatch([kind, value, fds, id, failed]) {
    switch (kind) {
      case MESSAGE:
        if (!this.emit('message', value, fds)) drop(fds)
        break
      case REQUEST:
        this.#asks(value, fds, id)
        break
      case REPLY:
        this.#replied(id, failed, value, fds)
        break
      case NO_REPLY:
        this.#settle(id, true, value)
        break
      case DRAINED:
        this.#queued = false
        this.#keepAlive()
        this.emit('drain')
        break
      case UNREADABLE:
        // Nobody else can answer it.
        if (id !== 0) this.#refuse(id, value)
        this.emit('messageerror', value)
        break
      case MORE:
    }
  }

  #asks(value, fds, id) {
    const answer = (answer, given, failed) => {
      if (this.#why !== null) throw this.#why
      const send = (check) => native.channelReply(this.#handle, answer, given.fds, id, failed, check)
      this.#sent(movingBuffers(send, given.transfer))
      this.#open.delete(id)
      if (this.#open.size === 0) this.#settled?.()
    }
    if (this.listenerCount('request') > 0) {
      this.#open.add(id)
      return this.emit('request', new ChannelRequest(value, fds, answer))
    }
    drop(fds)
    this.#refuse(id, fail('NotFound', 'nobody answers requests on this channel'))
  }

  /** Resolves when every request that was handed over has its answer, or nobody waits for one. */
  #answered() {
    if (this.#open.size === 0 || this.#why !== null) return Promise.resolve()
    return new Promise((resolve) => {
      this.#settled = resolve
      this.once('close', resolve)
    })
  }

  /** An answer that nobody here gave; one that cannot be delivered is dropped. */
  #refuse(id, error) {
    try {
      this.#sent(native.channelReply(this.#handle, error, undefined, id, true))
    } catch {}
  }

  #replied(id, failed, value, fds) {
    if (!failed && this.#asked.get(id)?.withFds === true) return this.#settle(id, false, { value, fds })
    drop(fds)
    this.#settle(id, failed, value)
  }

  #settle(id, failed, value) {
    const one = this.#asked.get(id)
    if (one === undefined) return
    this.#asked.delete(id)
    if (one.onAbort !== undefined) unlisten(one.signal, one.onAbort)
    this.#keepAlive()
    if (failed) one.reject(value)
    else one.resolve(value)
  }

  /** `left`: messages may wait for whoever comes to listen for them. */
  #end(why, left = false) {
    this.#left = left && native.channelUnread(this.#handle) > 0
    if (this.#why === null) {
      this.#why = why
      clearTimeout(this.#grace)
      if (this.#note !== 0) offNote(this.#note)
      for (const id of [...this.#asked.keys()]) this.#settle(id, true, why)
      this.#queued = false
      this.#keepAlive()
    }
    // Behind what the last replies and messages have set going.
    if (this.#told) this.#letGo()
    else setImmediate(() => this.#tell())
  }

  #tell() {
    // Whoever has come to listen meanwhile gets what is left first.
    if (this.#left && this.#listens()) return this.#receive()
    if (this.#told) return
    this.#told = true
    this.#letGo()
    this.emit('close', this.#why)
  }

  /** Once the end is told: what nobody will ask for any more. */
  #letGo() {
    if (!this.#told || this.#left || this.#last !== null) return
    this.#last = native.channelStats(this.#handle)
    native.channelLeave(this.#handle)
  }
}

/** A connection that is being made. */
class Connecting {
  #handle = null
  #note = newNote()
  #timer
  #settle

  constructor(path, given, wait, resolve, reject) {
    let done = false
    let deadline
    const onAbort = () => this.#settle(reject, aborted(wait.signal.reason))
    this.#settle = (settle, value) => {
      if (done) return
      done = true
      clearTimeout(this.#timer)
      clearTimeout(deadline)
      offNote(this.#note)
      if (wait.signal) unlisten(wait.signal, onAbort)
      end()
      if (settle === reject && this.#handle !== null) native.channelLeave(this.#handle)
      settle(value)
    }
    const look = () => {
      if (done) return
      try {
        this.#handle ??= native.channelConnect(path, ...given)
        if (native.channelTryOpen(this.#handle)) return this.#settle(resolve, opened(this.#handle, this.#note))
        onNote(this.#note, look)
        native.channelArm(this.#handle, this.#note)
      } catch (error) {
        if (error.code !== FULL) return this.#settle(reject, error)
        this.#timer = setTimeout(look, CONNECT_RETRY)
      }
    }
    if (wait.signal) listen(wait.signal, onAbort)
    begin()
    const { timeout } = wait
    if (timeout !== undefined && timeout !== null && timeout !== Number.POSITIVE_INFINITY) {
      const late = () => this.#settle(reject, fail('Timeout', 'listener did not accept', { timeout_ms: timeout }))
      deadline = setTimeout(late, Math.min(timeout, MAX_TIMER))
    }
    look()
  }
}

/** Accepts channels at a path. */
class ChannelListener {
  #handle
  #note = newNote()
  #fn
  #ref = true
  #held = false
  #closed = false

  constructor(key, [handle, path], fn) {
    if (key !== MADE_HERE) throw fail('Invalid', 'a listener is made by Channel.listen, not by new')
    this.#handle = handle
    this.path = path
    this.#fn = fn
    onNote(this.#note, () => this.#accept())
    this.#keepAlive()
    native.listenerArm(handle, this.#note)
  }

  get closed() {
    return this.#closed
  }

  close() {
    if (this.#closed) return
    this.#closed = true
    offNote(this.#note)
    native.listenerClose(this.#handle)
    this.#keepAlive()
  }

  ref() {
    this.#ref = true
    this.#keepAlive()
    return this
  }

  unref() {
    this.#ref = false
    this.#keepAlive()
    return this
  }

  [Symbol.dispose]() {
    this.close()
  }

  #accept() {
    if (this.#closed) return
    let handle
    try {
      handle = native.listenerNext(this.#handle)
    } catch (error) {
      // Without fds or memory nobody can be accepted now; who waits, waits.
      if (error.errno === undefined) return report(error)
      setTimeout(() => this.#accept(), PAUSE)
      return
    }
    // One of a turn: its channel's code may take its time.
    native.listenerArm(this.#handle, this.#note)
    if (handle === null) return
    try {
      this.#fn(opened(handle))
    } catch (error) {
      report(error)
    }
  }

  #keepAlive() {
    const held = this.#ref && !this.#closed
    if (held === this.#held) return
    this.#held = held
    if (held) begin()
    else end()
  }
}

module.exports = { Channel, opened, finished, sentCopy, answered, checkSend }
