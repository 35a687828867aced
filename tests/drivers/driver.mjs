// The Node.js driver of the conformance runner: PROTOCOL.md through the public API of the package.
import { closeSync, openSync, readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { createRequire } from 'node:module'
import { constants } from 'node:os'
import * as offloop from '../../bindings-node/lib/index.mjs'

const { OffloopError, ThreadPool, WorkerPool, ProcessPool, TransferBuffer, defaultPool, revokeToken, RingBuffer, Channel, Cluster, Counter, RateLimiter } = offloop

const table = JSON.parse(readFileSync(new URL('../vectors/errors.json', import.meta.url), 'utf8')).errors
const kindOf = new Map(table.map((row) => [row.code, row.kind]))

// The common codec, which no program needs: values reach the driver as messages of it.
const native = createRequire(import.meta.url)('../../bindings-node/lib/native.cjs')

const pools = new Map()
const tasks = new Map()
const buffers = new Map()
const rings = new Map()
const deliveries = new Map()
const producers = new Map()
const consumers = new Map()
const channels = new Map()
const listeners = new Map()
const requests = new Map()
const streams = new Map()
const clusters = new Map()
let order = []

class DriverError extends Error {}

/** A record as a reply. One that is in flight is kept under its name. */
function taken(record, args) {
  if (record instanceof Uint8Array) return `data=${hex(record)}`
  deliveries.set(args.as, record)
  return `data=${hex(record.bytes)} redelivered=${Number(record.redelivered)}`
}

const hex = (bytes) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex')
const text = (s) => Buffer.from(String(s)).toString('hex')
const say = (id, reply) => process.stdout.write(`${id} ${reply}`.trimEnd() + '\n')

function showError(error) {
  if (error instanceof DriverError) return `err kind=Driver status=0 message=${text(error.message)}`
  if (!(error instanceof OffloopError)) return `err kind=Foreign status=0 message=${text(error?.stack ?? error)}`
  return `err kind=${kindOf.get(error.code)} status=${error.status} message=${text(error.message)}`
}

/** Class, message, stack, code and cause of an error, each empty where it has none. */
function errorFields(error) {
  const parts = { name: error?.name, text: error?.message, stack: error?.stack, code: error?.code, cause: error?.cause?.message }
  return Object.entries(parts)
    .map(([key, part]) => `${key}=${text(part ?? '')}`)
    .join(' ')
}

function show(value) {
  if (value instanceof Uint8Array) return `ok bytes=${hex(value)}`
  if (value instanceof TransferBuffer) return `ok bytes=${hex(value.bytes())}`
  if (typeof value === 'boolean') return `ok bool=${value}`
  if (Number.isInteger(value) || typeof value === 'bigint') return `ok int=${value}`
  if (typeof value === 'string') return `ok text=${text(value)}`
  return 'ok other=1'
}

function need(map, args, key) {
  const found = map.get(args[key])
  if (found === undefined) throw new DriverError(`no ${key} ${args[key]}`)
  return found
}

function param(value) {
  if (value === 'true' || value === 'false') return value === 'true'
  if (value.startsWith('x:')) return Buffer.from(value.slice(2), 'hex')
  return /^-?\d+(\.\d+)?$/.test(value) ? Number(value) : value
}

function params(args) {
  const pairs = Object.entries(args).filter(([key]) => key.startsWith('p.'))
  return pairs.length === 0 ? undefined : Object.fromEntries(pairs.map(([key, value]) => [key.slice(2), param(value)]))
}

function input(args) {
  if (args.buffer !== undefined) return need(buffers, args, 'buffer')
  return args.input === undefined ? undefined : Buffer.from(args.input, 'hex')
}

function runOptions(args, signal) {
  const options = { signal }
  if (args.timeout) options.timeout = Number(args.timeout)
  if (args.queue_timeout) options.queueTimeout = Number(args.queue_timeout)
  if (args.priority) options.priority = Number(args.priority)
  if (args.key) options.key = args.key
  if (args.retries) options.retries = Number(args.retries)
  return options
}

/** Whether a pool's tasks are functions of worker.mjs. */
const hasFunctions = (pool) => pool instanceof WorkerPool || pool instanceof ProcessPool

/** What a pool of processes starts. */
function workerOf(args) {
  if (args.of === undefined) return new URL(args.broken ? 'broken.mjs' : 'worker.mjs', import.meta.url)
  if (args.of === 'node' || args.of === 'python') return { [args.of]: args.file }
  return { command: args.command.split(',') }
}

function newPool(args, options) {
  if (args.worker === 'thread') return new WorkerPool(workerOf(args), options)
  if (args.worker === 'process') return new ProcessPool(workerOf(args), options)
  return new ThreadPool(options)
}

/** What a function of worker.mjs is given. */
const callOf = (args, input) => ({ input, ...params(args) })

/** Keeps a task's one outcome as the text of a reply. */
function track(name, promise, abort) {
  const outcome = promise.then(show, showError).then((reply) => {
    order.push(name)
    return reply
  })
  const error = promise.then(() => undefined, (error) => error)
  tasks.set(name, { outcome, error, abort })
}

/** What came and nobody has asked for, or who asks and nothing has come. */
class Line {
  #came = []
  #asking = []
  #why

  put(item) {
    const next = this.#asking.shift()
    if (next === undefined) this.#came.push(item)
    else next.resolve(item)
  }

  end(why) {
    this.#why = why
    for (const one of this.#asking.splice(0)) one.reject(why)
  }

  take() {
    if (this.#came.length > 0) return Promise.resolve(this.#came.shift())
    if (this.#why !== undefined) return Promise.reject(this.#why)
    return new Promise((resolve, reject) => this.#asking.push({ resolve, reject }))
  }
}

const sizes = (args) => (args.max_queued === undefined ? {} : { maxQueued: Number(args.max_queued) })

/** Keeps a channel, and what it brings. */
function keepChannel(name, channel) {
  const line = new Line()
  channel.on('message', (value) => line.put({ value }))
  channel.on('request', (request) => line.put({ value: request.value, request }))
  channel.on('close', (why) => line.end(why))
  channels.set(name, { channel, line })
}

const message = (args) => (args.buffer === undefined ? param(args.value) : need(buffers, args, 'buffer'))
const fields = (value) => show(value).slice('ok '.length)

const record = (args) => (args.len === undefined ? Buffer.from(args.data, 'hex') : Buffer.alloc(Number(args.len)))
const within = (args) => (args.timeout === undefined ? undefined : { timeout: Number(args.timeout) })

/** What workers of a cluster run: member.mjs, or a program of another language, and what they are to do. */
function memberOf(args) {
  const words = [args.mode ?? 'serves', args.version ?? 'one', args.at ?? '']
  if (args.command !== undefined && args.of !== 'node') return { exec: [...args.command.split(','), ...words] }
  return { exec: new URL('member.mjs', import.meta.url), args: words }
}

/** Options of a cluster that are numbers. */
const CLUSTER_NUMBERS = { workers: 'workers', spares: 'spares', ready_timeout: 'readyTimeout', min_ready: 'minReady', drain_timeout: 'drainTimeout', kill_grace: 'killGrace', max_age: 'maxAge', max_requests: 'maxRequests' }

function newCluster(args) {
  const options = { ...memberOf(args) }
  for (const [key, name] of Object.entries(CLUSTER_NUMBERS)) if (args[key] !== undefined) options[name] = Number(args[key])
  if (args.listen !== undefined) options.listen = args.listen.split(',')
  if (args.balance !== undefined) options.balance = args.balance
  if (args.beat !== undefined) options.heartbeat = { interval: Number(args.beat), timeout: Number(args.hang_timeout) }
  return new Cluster(options)
}

const workerFields = ({ slot, generation, pid }) => `slot=${slot} generation=${generation} pid=${pid}`
const exitFields = ({ cause, exitCode, signal, forced, text: said }) =>
  `cause=${cause} exit_code=${exitCode ?? 'none'} signal=${constants.signals[signal] ?? 'none'} forced=${Number(forced)} text=${text(said ?? '')}`

/** What an event is in a reply, by the name that scenarios have for it. */
const EVENTS = {
  ready: workerFields,
  spare: workerFields,
  unresponsive: (worker, { cause }) => `${workerFields(worker)} cause=${cause}`,
  draining: (worker, { cause }) => `${workerFields(worker)} cause=${cause}`,
  exit: (worker, how) => `${workerFields(worker)} ${exitFields(how)}`,
  expired: (worker, { reason }) => `${workerFields(worker)} reason=${reason}`,
  listening: (worker, address) => `${workerFields(worker)} address=${address}`,
  reload: ({ generation }) => `generation=${generation}`,
  reloadFailed: ({ generation, error }) => `generation=${generation} message=${text(error.message)}`,
  log: (worker, { stream, text: line }) => `${workerFields(worker)} stream=${stream} text=${text(line)}`,
  warning: (error) => `message=${text(error.message)}`,
  degraded: () => '',
  recovered: () => '',
  stopped: () => ''
}

/** Keeps a cluster, and what it tells. */
function keepCluster(name, cluster) {
  const lines = { message: new Line() }
  for (const [event, show] of Object.entries(EVENTS)) {
    const line = new Line()
    lines[event.replace('reloadFailed', 'reload_failed')] = line
    cluster.on(event, (...told) => line.put(show(...told)))
  }
  cluster.on('message', (worker, value) => lines.message.put({ worker, value }))
  cluster.on('request', (worker, request) => lines.message.put({ worker, value: request.value, request }))
  clusters.set(name, { cluster, lines })
}

const clusterOf = (args) => need(clusters, args, 'cluster').cluster

/** Calls what may throw at once, as a promise. */
const attempt = async (call) => await call()

const verbs = {
  hello: () => `lang=node abi=1 wire=1 caps=back,ordered,grace,zero,workers,processes,moves,names,unsendable,map,classes,counts,leaves,streams${RingBuffer ? ',rings' : ''}${Channel ? ',channels' : ''}${Cluster ? ',clusters' : ''}`,
  'pool.new'(args) {
    const options = {}
    if (args.max_workers) options.maxWorkers = Number(args.max_workers)
    if (args.max_queue) options.maxQueue = Number(args.max_queue)
    if (args.max_overdue) options.maxOverdue = Number(args.max_overdue)
    if (args.on_full) options.onFull = args.on_full
    if (args.max_tasks_per_worker) options.maxTasksPerWorker = Number(args.max_tasks_per_worker)
    if (args.cancel_grace) options.cancelGrace = Number(args.cancel_grace)
    pools.set(args.pool, newPool(args, options))
  },
  'pool.submit'(args) {
    const pool = need(pools, args, 'pool')
    const abort = new AbortController()
    if (hasFunctions(pool)) {
      const call = () => pool.run(callOf(args, input(args)), { name: args.op, ...runOptions(args, abort.signal) })
      return track(args.task, attempt(call), abort)
    }
    track(args.task, attempt(() => pool.run(args.op, input(args), params(args), runOptions(args, abort.signal))), abort)
  },
  'pool.submit_many'(args) {
    const pool = need(pools, args, 'pool')
    const inputs = args.inputs.split(',').map((h) => Buffer.from(h, 'hex'))
    const calls = () => pool.runMany(inputs.map((input) => callOf(args, input)), { name: args.op, ...runOptions(args) })
    const ops = () => pool.runMany(args.op, inputs, params(args), runOptions(args))
    const all = attempt(hasFunctions(pool) ? calls : ops)
    args.tasks.split(',').forEach((name, i) => track(name, all.then((results) => results[i])))
  },
  async 'pool.map'(args) {
    const inputs = args.inputs.split(',').map((h) => callOf(args, Buffer.from(h, 'hex')))
    const results = []
    for await (const result of need(pools, args, 'pool').map(inputs, { name: args.op })) results.push(show(result).slice('ok '.length))
    return `results=${results.join(',')}`
  },
  'stream.open'(args) {
    const options = { name: args.op, ...runOptions(args) }
    streams.set(args.stream, need(pools, args, 'pool').stream(callOf(args), options))
  },
  'stream.close': async (args) => void (await need(streams, args, 'stream').return()),
  'pool.call': async (args) => `message=${hex(native.encode(await called(args)))}`,
  'task.error': async (args) => {
    const error = await need(tasks, args, 'task').error
    return errorFields(error)
  },
  'pool.stats'(args) {
    const s = need(pools, args, 'pool').stats
    const names = { queued: 'queued', running: 'running', workers: 'workers', overdue: 'overdue', submitted: 'submitted', completed: 'completed', failed: 'failed', timed_out: 'timedOut', cancelled: 'cancelled', lost: 'lost' }
    if (s.recycled !== undefined) Object.assign(names, { retried: 'retried', recycled: 'recycled' })
    const fields = Object.entries(names).map(([shown, key]) => `${shown}=${s[key]}`)
    return [...fields, `wait_count=${s.wait.count}`, `run_count=${s.run.count}`].join(' ')
  },
  'pool.resize'(args) {
    const options = {}
    if (args.min_workers) options.minWorkers = Number(args.min_workers)
    if (args.max_workers) options.maxWorkers = Number(args.max_workers)
    need(pools, args, 'pool').resize(options)
  },
  async 'pool.close'(args) {
    await need(pools, args, 'pool').close(args.grace ? { grace: Number(args.grace) } : undefined)
  },
  'task.cancel': (args) => void need(tasks, args, 'task').abort?.abort(),
  'order.take'() {
    const taken = order.join(',')
    order = []
    return `tasks=${taken}`
  },
  'buffer.new': (args) => void buffers.set(args.buf, TransferBuffer.alloc(Number(args.len), { shared: args.shared === '1' })),
  'buffer.from': (args) => void buffers.set(args.buf, TransferBuffer.from(Buffer.from(args.data, 'hex'))),
  'buffer.info'(args) {
    const b = need(buffers, args, 'buf')
    const fd = b.detached || b.fd === null ? 'none' : `${process.pid}:${b.fd}`
    return `len=${b.byteLength} detached=${Number(b.detached)} fd=${fd}`
  },
  'buffer.write': (args) => void need(buffers, args, 'buf').bytes().set(Buffer.from(args.data, 'hex'), Number(args.at)),
  'buffer.read'(args) {
    const bytes = need(buffers, args, 'buf').bytes()
    const at = Number(args.at ?? 0)
    return `data=${hex(bytes.subarray(at, args.len === undefined ? undefined : at + Number(args.len)))}`
  },
  'buffer.transfer': (args) => `token=${need(buffers, args, 'buf').transfer()}`,
  'buffer.receive': (args) => void buffers.set(args.buf, TransferBuffer.receive(args.token)),
  'buffer.revoke': (args) => void revokeToken(args.token),
  'buffer.attach'(args) {
    const [pid, fd] = args.from.split(':')
    const opened = openSync(`/proc/${pid}/fd/${fd}`, 'r+')
    try {
      buffers.set(args.buf, TransferBuffer.attach(opened))
    } finally {
      closeSync(opened)
    }
  },
  'buffer.free': (args) => void buffers.delete(args.buf),
  'ring.create'(args) {
    const options = { kind: args.kind ?? 'spsc' }
    if (args.capacity) options.capacity = Number(args.capacity)
    if (args.on_full) options.onFull = args.on_full
    if (args.slot_size) options.slotSize = Number(args.slot_size)
    if (args.max_participants) options.maxParticipants = Number(args.max_participants)
    if (args.path) options.path = args.path
    rings.set(args.ring, RingBuffer.create(options))
  },
  'ring.attach': (args) => void rings.set(args.ring, RingBuffer.attach(args.path ?? args.fds.split(',').map(Number))),
  'ring.inspect'(args) {
    const { kind, capacity, participants } = RingBuffer.inspect(args.path)
    return `kind=${kind} capacity=${capacity} participants=${participants.length}`
  },
  'ring.close': (args) => void need(rings, args, 'ring').close(),
  'ring.producer': (args) => void producers.set(args.producer, need(rings, args, 'ring').producer({ batch: args.batch === '1' })),
  'ring.push': (args) => need(producers, args, 'producer').push(record(args), within(args)),
  'ring.try_push': (args) => `pushed=${Number(need(producers, args, 'producer').tryPush(record(args)))}`,
  'ring.claim'(args) {
    const bytes = record(args)
    return `pushed=${Number(need(producers, args, 'producer').claim(bytes.length, (view) => view.set(bytes)))}`
  },
  'ring.flush': (args) => void need(producers, args, 'producer').flush(),
  'ring.consumer': (args) => void consumers.set(args.consumer, need(rings, args, 'ring').consumer(args.ack ? { ack: args.ack } : {})),
  'ring.leave': (args) => void need(consumers, args, 'consumer').close(),
  'ring.pop': async (args) => taken(await need(consumers, args, 'consumer').pop(within(args)), args),
  'ring.try_pop'(args) {
    const record = need(consumers, args, 'consumer').tryPop()
    return record === null ? 'empty=1' : taken(record, args)
  },
  'ring.ack': (args) => void need(deliveries, args, 'delivery').ack(),
  'ring.nack': (args) => void need(deliveries, args, 'delivery').nack(),
  'ring.read'(args) {
    const records = []
    need(consumers, args, 'consumer').read(Number(args.max), (view) => void records.push(hex(view)))
    return `data=${records.join(',')}`
  },
  'channel.pair'(args) {
    const [a, b] = Channel.pair()
    keepChannel(args.channel, a)
    keepChannel(args.other, b)
  },
  'channel.listen'(args) {
    const line = new Line()
    listeners.set(args.listener, { listener: Channel.listen(args.path, sizes(args), (channel) => line.put(channel)), line })
  },
  'channel.accept': async (args) => keepChannel(args.channel, await need(listeners, args, 'listener').line.take()),
  'channel.connect': async (args) => keepChannel(args.channel, await Channel.connect(args.path, sizes(args))),
  'channel.send': (args) => void need(channels, args, 'channel').channel.send(message(args)),
  async 'channel.recv'(args) {
    const { value, request } = await need(channels, args, 'channel').line.take()
    if (request !== undefined) requests.set(args.as, request)
    return `${fields(value)} request=${Number(request !== undefined)}`
  },
  'channel.request': async (args) => fields(await need(channels, args, 'channel').channel.request(message(args), within(args))),
  'channel.reply': (args) => void need(requests, args, 'request').reply(message(args)),
  'cluster.new': (args) => keepCluster(args.cluster, newCluster(args)),
  'cluster.start': (args) => clusterOf(args).start(),
  async 'cluster.reload'(args) {
    const { generation, replaced, forced } = await clusterOf(args).reload(args.version === undefined ? {} : memberOf(args))
    return `generation=${generation} replaced=${replaced} forced=${forced}`
  },
  'cluster.scale': (args) => clusterOf(args).scale(Number(args.workers)),
  'cluster.stop': (args) => clusterOf(args).stop(args.grace === undefined ? {} : { grace: Number(args.grace) }),
  'cluster.kill': (args) => void clusterOf(args).kill(Number(args.slot)),
  'cluster.addresses': (args) => `addresses=${clusterOf(args).addresses.join(',')}`,
  'cluster.stats'(args) {
    const s = clusterOf(args).stats
    const counts = `generation=${s.generation} wanted=${s.wanted} live=${s.live} ready=${s.ready} spares=${s.spares} degraded=${Number(s.degraded)}`
    const since = `spawned=${s.spawned} crashed=${s.crashed} forced=${s.forced} expired=${s.expired}`
    return `${counts} ${since} reloads=${s.reloads} reloads_failed=${s.reloadsFailed} served=${s.served}`
  },
  'cluster.event': (args) => need(clusters, args, 'cluster').lines[args.of].take(),
  'cluster.send': (args) => void clusterOf(args).send(Number(args.slot), param(args.value)),
  'cluster.broadcast': (args) => `missed=${clusterOf(args).broadcast(param(args.value)).length}`,
  'cluster.request': async (args) => fields(await clusterOf(args).request(Number(args.slot), param(args.value), within(args))),
  async 'cluster.recv'(args) {
    const { worker, value, request } = await need(clusters, args, 'cluster').lines.message.take()
    if (request !== undefined) requests.set(args.as, request)
    return `slot=${worker.slot} ${fields(value)} request=${Number(request !== undefined)}`
  },
  'cluster.count': (args) => `int=${new Counter(args.counter, { cluster: clusterOf(args) }).add(Number(args.add ?? 0))}`,
  'cluster.take'(args) {
    const limiter = new RateLimiter(args.limiter, { rate: 1e-6, burst: Number(args.burst ?? 3), keys: 64, cluster: clusterOf(args) })
    return `allowed=${Number(limiter.take().allowed)}`
  },
  'channel.close'(args) {
    need(channels, args, 'channel').channel.close(args.grace === undefined ? {} : { grace: Number(args.grace) })
  }
}

const called = (args) => need(pools, args, 'pool').run(native.decode(Buffer.from(args.message, 'hex')), { name: args.op })

async function handle(id, verb, args) {
  try {
    if (verb === 'task.wait') return say(id, await need(tasks, args, 'task').outcome)
    if (verb === 'stream.next') {
      const { value, done } = await need(streams, args, 'stream').next()
      return say(id, done ? 'ok end=1' : show(value))
    }
    if (verb === 'op.run') return say(id, show(await defaultPool().run(args.op, input(args), params(args))))
    if (!Object.hasOwn(verbs, verb)) throw new DriverError(`unknown verb ${verb}`)
    say(id, `ok ${(await verbs[verb](args)) ?? ''}`)
  } catch (error) {
    say(id, verb === 'pool.call' ? `${showError(error)} ${errorFields(error)}` : showError(error))
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const [id, verb, ...tokens] = line.split(' ')
  handle(id, verb, Object.fromEntries(tokens.map((t) => [t.slice(0, t.indexOf('=')), t.slice(t.indexOf('=') + 1)])))
}
// What is still in flight does not keep the driver: an idle or busy pool is no reason to stay.
process.exit(0)
