'use strict'
// What both sides of `offloop/cluster` have: the class of workers, and messages with handles over a Channel.
//
// A message is a list. `[USER, serialization, body, kind]`, where `kind` is that of the handle whose fd came along, or null; `[INNER, word]` is the
// library's own.

const { EventEmitter } = require('node:events')
const net = require('node:net')
const v8 = require('node:v8')

const USER = 0
const INNER = 1
const SERIALIZATIONS = ['json', 'advanced']
/** Scheduling policies, as node:cluster numbers them. */
const SCHED_NONE = 1
const SCHED_RR = 2

/** As the runtime's own errors. */
const coded = (ErrorClass, code, message) => Object.assign(new ErrorClass(message), { code })

class Worker extends EventEmitter {
  constructor({ id = 0, process, state = 'none' } = {}) {
    super()
    this.exitedAfterDisconnect = undefined
    this.id = id
    this.process = process
    this.state = state
  }

  kill(signal) {
    this.destroy(signal)
  }

  destroy(signal = 'SIGTERM') {
    this.process.kill(signal)
  }

  send(message, handle, options, callback) {
    return this.process.send(message, handle, options, callback)
  }

  isDead() {
    return (this.process.exitCode ?? this.process.signalCode ?? null) !== null
  }

  isConnected() {
    return this.process.connected
  }
}

function kindOf(handle) {
  if (handle instanceof net.Socket) return 'socket'
  if (handle instanceof net.Server) return 'server'
  throw coded(TypeError, 'ERR_INVALID_HANDLE_TYPE', 'This handle type cannot be sent')
}

/** `target.send(message[, handle[, options]][, callback])`; `target` is a process, whose `connected` says whether somebody may hear it. */
function post(target, channel, serialization, message, ...rest) {
  const callback = rest.find((one) => typeof one === 'function')
  const [handle, options] = rest.map((one) => (typeof one === 'function' ? undefined : one))
  const failed = (error) => {
    process.nextTick(() => (callback === undefined ? target.emit('error', error) : callback(error)))
    return false
  }
  if (!target.connected) return failed(coded(Error, 'ERR_IPC_CHANNEL_CLOSED', 'Channel closed'))
  if (message === undefined) throw coded(TypeError, 'ERR_MISSING_ARGS', 'The "message" argument must be specified')
  const kind = handle === undefined || handle === null ? null : kindOf(handle)
  const body = serialization === 'json' ? JSON.stringify(message) : v8.serialize(message)
  if (body === undefined) {
    const text = `The "message" argument must be one of type string, object, number, or boolean. Received ${typeof message}`
    throw coded(TypeError, 'ERR_INVALID_ARG_TYPE', text)
  }
  let sent
  try {
    sent = channel.send([USER, serialization, body, kind], kind === null ? undefined : { fds: [handle] })
  } catch (error) {
    return failed(error)
  }
  // Who has it now reads from it.
  if (kind === 'socket' && options?.keepOpen !== true) handle.destroy()
  if (callback !== undefined) process.nextTick(callback, null)
  return sent
}

/** The message of the user in what came, and its handle once that is open. */
function receive([, serialization, body, kind], [fd], then) {
  const message = serialization === 'json' ? JSON.parse(body) : v8.deserialize(body)
  if (kind === 'socket') then(message, new net.Socket({ fd, readable: true, writable: true }))
  else if (kind === 'server') {
    const server = new net.Server()
    server.listen({ fd }, () => then(message, server))
  } else then(message, undefined)
}

module.exports = { Worker, USER, INNER, SERIALIZATIONS, SCHED_NONE, SCHED_RR, coded, post, receive }
