'use strict'
// This process as a worker that `offloop/cluster` has forked: `process.send`, `process.on('message')`, and what of node:cluster's API is for workers. lib/primary.cjs is
// the other side.

const { EventEmitter } = require('node:events')
const member = require('./member.cjs')
const { Worker, INNER, SCHED_NONE, SCHED_RR, post, receive } = require('./forks.cjs')
const { OffloopError } = require('./error.cjs')

/** Messages that came before anybody listens for them: more are dropped, as nobody will. */
const MAX_EARLY = 1024

const cluster = new EventEmitter()
let own = null

class Own extends Worker {
  #channel
  #serialization
  #early = []
  #leaves = false

  constructor(id, serialization, channel) {
    super({ id, process, state: 'online' })
    this.#channel = channel
    this.#serialization = serialization
    process.connected = true
    process.channel = {
      ref: () => channel.ref(),
      unref: () => channel.unref(),
    }
    process.send = (message, ...rest) => post(process, channel, this.#serialization, message, ...rest)
    process.disconnect = () => this.#close()
    const listens = (name) => {
      if (name === 'message') process.nextTick(() => this.#flush())
    }
    process.on('newListener', listens)
    this.on('newListener', listens)
    channel.on('message', (message, fds) => this.#came(message, fds))
    channel.on('close', (why) => this.#ended(why))
  }

  /** As node:cluster: says so, and exits. */
  destroy() {
    if (this.state === 'destroying') return
    this.exitedAfterDisconnect = true
    if (!process.connected) process.exit(0)
    this.state = 'destroying'
    process.once('disconnect', () => process.exit(0))
    this.#channel.send([INNER, 'disconnecting'])
    this.#close()
  }

  /** Closes the servers, and the channel once they have ended. */
  disconnect() {
    if (this.#leaves) return this
    this.#leaves = true
    this.exitedAfterDisconnect = true
    if (process.connected) this.#channel.send([INNER, 'disconnecting'])
    this.state = 'disconnecting'
    member.finishAll().then(() => this.#close())
    return this
  }

  #came(message, fds) {
    if (message[0] === INNER) this.disconnect()
    else receive(message, fds, (value, handle) => this.#emit(value, handle))
  }

  #emit(...message) {
    if (process.listenerCount('message') + this.listenerCount('message') === 0) {
      if (this.#early.length < MAX_EARLY) this.#early.push(message)
      return
    }
    process.emit('message', ...message)
    this.emit('message', ...message)
  }

  #flush() {
    for (const message of this.#early.splice(0)) this.#emit(...message)
  }

  #close() {
    if (process.connected) this.#channel.close()
  }

  #ended(why) {
    process.connected = false
    this.state = 'disconnected'
    process.emit('disconnect')
    this.emit('disconnect')
    // A primary that has died is seen by its lifeline: what is in flight is finished then.
    if (!this.exitedAfterDisconnect && !(why instanceof OffloopError && why.code === 'ERR_OFFLOOP_PEER_DIED')) process.exit(0)
  }
}

/** Becomes one; the variable says which. */
function enter() {
  const [id, serialization] = process.env.OFFLOOP_WORKER.split(',')
  // Programs that this one starts are nobody's worker.
  delete process.env.OFFLOOP_WORKER
  const worker = member.current()
  if (worker === null || own !== null) return
  own = new Own(Number(id), serialization, worker.channel)
  Object.assign(cluster, {
    isWorker: true,
    isMaster: false,
    isPrimary: false,
    Worker,
    worker: own,
    SCHED_NONE,
    SCHED_RR,
    disconnect: () => own.disconnect(),
  })
}

module.exports = { enter, current: () => (own === null ? null : cluster) }
