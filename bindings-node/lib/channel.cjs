'use strict'
// Channel: events and promises of what the core's channel brings.

// As they are when the package loads: fake timers of a test would stop the messages.
const { setImmediate, setTimeout, clearTimeout } = require('node:timers')
const { EventEmitter } = require('node:events')
const { close: closeFd } = require('node:fs')
const native = require('./native.cjs')
const { fail, aborted, typeName, checkOptions, checkKnown } = require('./error.cjs')
const { TransferBuffer, movingBuffers } = require('./buffer.cjs')
const { checkWait, isSpent, inNextTurn } = require('./waits.cjs')
const { begin, end, newNote, onNote, offNote, listen, unlisten, report } = require('./completion.cjs')
const { pathOf } = require('./ring.cjs')

const MADE_HERE = Symbol('made here')
const [MESSAGE, REQUEST, REPLY, NO_REPLY, DRAINED] = [1, 2, 3, 4, 5]
/** ms until the next attempt after fds or memory were missing; nothing is lost meanwhile. */
const PAUSE = 100
/** ms until a listener whose queue is full is asked again. */
const CONNECT_RETRY = 5
const RECEIVES = ['message', 'request', 'close']
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
  if (options === undefined || options === null) return undefined
  const { transfer, fds, ...unknown } = Array.isArray(options) ? { transfer: options } : checkOptions(options)
  checkKnown(unknown, 'transfer fds')
  for (const item of transfer ?? []) {
    if (!(item instanceof TransferBuffer)) {
      throw fail('Invalid', 'only a TransferBuffer moves between processes; other bytes are copied', { got: typeName(item) })
    }
  }
  return fdsOf(fds)
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
    this.#once(error, undefined, true)
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

class Channel extends EventEmitter {
  #handle
  #note = 0
  #asked = new Map()
  #started = false
  #queued = false
  #ref = true
  #held = false
  #why = null
  #resume = () => this.#receive()

  static {
    opened = (handle, note = 0) => new Channel(MADE_HERE, handle, note)
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
    return native.channelSocket(this.#handle)
  }

  get closed() {
    return this.#why !== null
  }

  get stats() {
    return native.channelStats(this.#handle)
  }

  send(value, options) {
    if (this.#why !== null) throw this.#why
    const fds = checkSend(options)
    return this.#sent(movingBuffers(() => native.channelPost(this.#handle, value, fds)))
  }

  request(value, options) {
    try {
      if (this.#why !== null) throw this.#why
      const { timeout, signal, withFds = false, ...rest } = checkOptions(options ?? {})
      checkWait({ timeout, signal })
      const fds = checkSend(rest)
      const id = movingBuffers(() => native.channelRequest(this.#handle, value, fds, timeout))
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

  close() {
    if (this.#why !== null) return
    native.channelClose(this.#handle)
    // What is queued is sent first; the end is told by what comes.
    if (this.#queued) this.#start()
    else this.#end(closedHere())
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
    if (this.#why !== null) return
    if (RECEIVES.some((name) => this.listenerCount(name) > 0)) this.#start()
    else this.#keepAlive()
  }

  #start() {
    if (!this.#started) {
      this.#started = true
      // A handle that was watched before has its note for good.
      this.#note ||= newNote()
      onNote(this.#note, this.#resume)
      inNextTurn(this.#resume)
      // Somebody has to begin the turn.
      isSpent()
    }
    this.#keepAlive()
  }

  #keepAlive() {
    const listens = RECEIVES.some((name) => this.listenerCount(name) > 0)
    const held = this.#ref && this.#started && this.#why === null && (listens || this.#asked.size > 0 || this.#queued)
    if (held === this.#held) return
    this.#held = held
    if (held) begin()
    else end()
  }

  /** Takes what is there, until the turn's time is used up. */
  #receive() {
    while (this.#why === null) {
      if (isSpent()) return inNextTurn(this.#resume)
      let event
      try {
        event = native.channelNext(this.#handle)
        if (event === null) return native.channelArm(this.#handle, this.#note)
      } catch (error) {
        // Without fds or memory nothing can be received now, and nothing is lost.
        if (error.errno === undefined) return this.#end(error)
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
    }
  }

  #asks(value, fds, id) {
    const answer = (answer, list, failed) => {
      if (this.#why !== null) throw this.#why
      this.#sent(movingBuffers(() => native.channelReply(this.#handle, answer, list, id, failed)))
    }
    if (this.listenerCount('request') > 0) return this.emit('request', new ChannelRequest(value, fds, answer))
    drop(fds)
    this.#refuse(id, fail('NotFound', 'nobody answers requests on this channel'))
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

  #end(why) {
    if (this.#why !== null) return
    this.#why = why
    if (this.#note !== 0) offNote(this.#note)
    for (const id of [...this.#asked.keys()]) this.#settle(id, true, why)
    this.#queued = false
    this.#keepAlive()
    // Behind what the last replies and messages have set going.
    setImmediate(() => this.emit('close', why))
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
      if (settle === reject && this.#handle !== null) native.channelClose(this.#handle)
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
      deadline = setTimeout(late, Math.min(timeout, 2 ** 31 - 1))
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

module.exports = { Channel }
