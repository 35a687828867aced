import {
  Channel,
  Cluster,
  type ClusterLine,
  defaultPool,
  metrics,
  OffloopError,
  ops,
  type PoolStats,
  RingBuffer,
  type RingStat,
  revokeToken,
  type TaskTrace,
  ThreadPool,
  type ThreadPoolOptions,
  type TraceHook,
  TransferBuffer,
} from 'offloop'

const options: ThreadPoolOptions = { maxWorkers: 4, onFull: 'wait', timeout: 1000 }
const pool = new ThreadPool(options)
const bytes: Uint8Array = await pool.run('sha256', new Uint8Array(8))
const text: string = await pool.run('sha256', new Uint8Array(8), { encoding: 'hex' })
const direct: string = await ops.sha256(bytes, { encoding: 'base64' })
const digest: Uint8Array = await ops.sha256(bytes, undefined, { signal: AbortSignal.timeout(1000) })
const many: Uint8Array[] = await pool.runMany('gzip', [bytes, new ArrayBuffer(8), new SharedArrayBuffer(8)], { level: 6 })
const hashed: string = await ops.password.hash(Buffer.from('secret'))
const verified: boolean = await ops.password.verify(Buffer.from('secret'), { hash: hashed })
const plugin: unknown = await pool.run('my_plugin.op', [bytes, bytes], { anything: 1 })

/** Compiles when `T` is exactly what is expected. */
const exactly =
  <Want,>() =>
  <T,>(_: (<X>() => X extends T ? 1 : 2) extends <X>() => X extends Want ? 1 : 2 ? T : never) => {}
// Options whose value is known only when it runs.
const maybe: { encoding?: 'hex' | 'bytes' } = {}
const always: { encoding: 'hex' | 'bytes' } = { encoding: 'hex' }
exactly<Uint8Array | string>()(await pool.run('sha256', bytes, maybe))
exactly<Uint8Array | string>()(await pool.run('sha256', bytes, always))
exactly<(Uint8Array | string)[]>()(await pool.runMany('sha256', [bytes], maybe))
exactly<Uint8Array | string>()(await ops.sha256(bytes, maybe))
exactly<string>()(await pool.run('sha256', bytes, { encoding: 'hex' }))
exactly<Uint8Array>()(await pool.run('sha256', bytes, { encoding: 'bytes' }))
exactly<Uint8Array>()(await pool.run('blake3', bytes, { length: 64 }))
exactly<Uint8Array>()(await pool.run('sha256', bytes, {}))
exactly<Uint8Array>()(await pool.run('sha256', bytes, null, { priority: 1 }))
exactly<Uint8Array>()(await pool.run('sha256', bytes, undefined, { priority: 1 }))
exactly<(Uint8Array | null)[]>()(await pool.run('json.pointer', bytes, { pointers: ['/a', '/b'] }))
exactly<Uint8Array[]>()(await pool.runMany('sha256', [bytes]))
exactly<string | number>()(await pool.run('crc32' as 'crc32' | 'password.hash', bytes))
const named: string = 'my_plugin.op'
const other_op: unknown = await pool.run(named, bytes, { anything: 1 })
// @ts-expect-error a misspelled option
await pool.run('sha256', bytes, { encodng: 'hex' })
// @ts-expect-error a misspelled option beside one that is not
await pool.run('blake3', bytes, { length: 64, encodng: 'hex' })
// @ts-expect-error a word that the option does not have
await pool.run('sha256', bytes, { encoding: 'hexx' })
// @ts-expect-error a misspelled option
await pool.runMany('sha256', [bytes], { encodng: 'hex' })
// @ts-expect-error an option that the op does not have
await ops.sha256(bytes, { level: 3 })
// @ts-expect-error text is no bytes
await ops.sha256('text')
// @ts-expect-error a required option is missing
await ops.password.verify(bytes)
// @ts-expect-error made by alloc, from, receive or attach
new TransferBuffer()

const buffer = TransferBuffer.alloc(1024, { shared: true })
buffer.bytes().fill(1)
const fd: number | null = buffer.fd
revokeToken(buffer.transfer())
const stats: PoolStats = defaultPool().stats
const p99: number = stats.wait.p99
try {
  await pool.options({ priority: 5, key: 'a' }).run('gunzip', bytes, { maxOutput: 1000 }, { onProgress: (value: unknown) => void value })
} catch (error) {
  if (error instanceof OffloopError && error.code === 'ERR_OFFLOOP_TOO_LARGE') console.log(error.retry, error.status)
}
const page: string = metrics('prometheus')
await pool.close({ grace: 100 })
await using other: ThreadPool = new ThreadPool()
void [other_op, text, direct, digest, many, verified, plugin, fd, p99, page, other]

const ring: RingBuffer = RingBuffer.create({ kind: 'spsc', capacity: 1 << 20, onFull: 'wait' })
using producer = ring.producer({ batch: true })
const pushed: boolean = producer.tryPush(new ArrayBuffer(8)) && producer.claim(8, (view) => view.fill(1))
await producer.push(bytes, { signal: AbortSignal.timeout(10), timeout: 5 })
const consumer = RingBuffer.attach(ring.fds).consumer().unref()
const popped: Uint8Array | null = consumer.tryPop()
const count: number = consumer.read(10, (view, redelivered) => console.log(view.length, redelivered))
for await (const record of consumer) console.log(record.length, pushed, popped, count)
const worker = RingBuffer.create({ kind: 'mpmc', slotSize: 1024 }).consumer({ ack: 'manual' })
for await (const delivery of worker) {
  const bytes: Uint8Array = delivery.bytes
  if (delivery.redelivered && bytes.length > 0) delivery.nack()
  else delivery.ack()
}
const stat: RingStat = RingBuffer.inspect('name')
console.log(stat.participants[0]?.pid)

const [end, other_] = Channel.pair({ capacity: 1 << 16 })
const inherited: number = other_.fd
const handed: number = other_.detach()
end.on('message', (value, fds) => console.log(value, fds.length)).on('close', (why) => console.log(why.code))
end.on('request', (request) => (request.value === null ? request.fail(new Error('no')) : request.reply([1], [TransferBuffer.alloc(1)])))
const atOnce: boolean = end.send({ any: 'thing' }, { fds: [0] })
const { value: answer, fds: got } = await end.request(1, { timeout: 5, withFds: true })
const listener = Channel.listen('name', (channel) => channel.close()).unref()
using connected = await Channel.connect('name', { signal: AbortSignal.timeout(10) })
console.log(inherited, handed, atOnce, answer, got[0]?.toFixed(), listener.path, connected.stats.lateReplies)
// @ts-expect-error made by pair, listen, connect or attach
new Channel()
// @ts-expect-error made by create or attach
new RingBuffer()
// @ts-expect-error no such kind
RingBuffer.create({ kind: 'queue' })

// Workers.
import { move, ProcessPool, type ProcessPoolOptions, WorkerPool, type WorkerPoolOptions } from 'offloop'
import nodeCluster, { fork, isPrimary } from 'offloop/cluster'
import { currentTask, currentWorker } from 'offloop/worker'

interface Module {
  default: (x: number) => string
  add: (a: number, b: number) => number
  later: (text: string) => Promise<Buffer>
  setting: number
}
const worker_options: WorkerPoolOptions = { maxWorkers: 2, onFull: 'wait', timeout: 100, resourceLimits: { maxOldGenerationSizeMb: 64 } }
const typed = new WorkerPool<Module>(new URL('file:///w.mjs'), worker_options)
exactly<number>()(await typed.exports.add(1, 2))
exactly<Buffer>()(await typed.exports.later('x'))
const by_name: string = await typed.run(1, { name: 'add', signal: AbortSignal.timeout(5), key: 'k' })
exactly<WorkerPool<Module>>()(typed.options({ priority: 1 }))
exactly<number>()(await typed.call((a: number, b: number) => a + b, 1, 2))
exactly<string>()(await typed.call(async () => 'x'))
// @ts-expect-error an argument of another type
await typed.call((a: number) => a, 'one')
const by_all: unknown[] = await typed.broadcast(1, { name: 'add', timeout: 5 })
// @ts-expect-error calls of every worker have no key
await typed.broadcast(1, { key: 'k' })
for await (const value of typed.stream(1, { name: 'add', window: 4, timeout: 5 })) console.log(value)
// @ts-expect-error part of a stream was taken
typed.stream(1, { retries: 1 })
const untyped = new WorkerPool('w.cjs')
const by_any: string = await untyped.exports.anything(1, 'two')
untyped.on('workerExit', ({ exitCode }) => exactly<number>()(exitCode))
exactly<number>()(untyped.stats.running)
await untyped.close({ grace: 5 })
exactly<boolean | undefined>()(currentTask()?.signal.aborted)
exactly<number | undefined>()(currentWorker()?.threadId)
// @ts-expect-error an argument of another type
await typed.exports.add(1, 'two')
// @ts-expect-error no function
typed.exports.setting
// @ts-expect-error an option that this pool does not have
new WorkerPool('w.cjs', { maxOverdue: 1 })
await typed.run(1, { retries: 1 }).catch((error: OffloopError) => exactly<boolean | undefined>()(error.poison))
// @ts-expect-error an option that calls of workers do not have
await typed.run(1, { nice: 1 })
const process_options: ProcessPoolOptions = { maxWorkers: 2, onFull: 'wait', timeout: 100, execArgv: ['--no-warnings'], env: { A: 'b' } }
const processes = new ProcessPool<Module>({ node: new URL('file:///w.mjs') }, process_options)
exactly<number>()(await processes.exports.add(1, 2))
exactly<ProcessPool<Module>>()(processes.options({ retries: 1 }))
exactly<number>()(await processes.call(async (a: number) => a, 1))
for await (const value of processes.stream(1, { name: 'add', window: 4 })) void value
// @ts-expect-error a stream cannot be run again
processes.stream(1, { retries: 1 })
const in_all: unknown[] = await processes.broadcast(1, { name: 'add', timeout: 5 })
// @ts-expect-error each process is asked
await processes.broadcast(1, { key: 'k' })
processes.on('workerExit', ({ signal }) => exactly<string | null>()(signal))
new ProcessPool({ python: 'scoring.py' }, { python: '/usr/bin/python3' })
new ProcessPool({ command: ['./worker', 'argument'] })
// @ts-expect-error a worker of a language that nobody has
new ProcessPool({ ruby: 'w.rb' })
await processes.run(1, { transferList: [new ArrayBuffer(8), TransferBuffer.alloc(8)] })
// @ts-expect-error what a process cannot be given
await processes.run(1, { transferList: [new MessageChannel().port1] })
const by_many: string[] = await typed.runMany([1, 2], { name: 'add', onProgress: (value) => value })
for await (const one of typed.map(new Set([1]), { concurrency: 4, ordered: false, name: 'add' })) {
  const text: string = one
  void text
}
currentTask()?.progress({ percent: 5 })
exactly<Uint8Array<ArrayBuffer>>()(move(new Uint8Array(8)))
void typed.run(1, { transferList: [new ArrayBuffer(8)] })
void [by_name, by_any, by_many, by_all, in_all]

new ThreadPool({ trace: ({ name, runTime, outcome, worker, error }) => console.log(name, runTime, outcome, worker, error) })
exactly<'cancelled' | 'completed' | 'failed' | 'lost' | 'timeout'>()(null as unknown as TaskTrace['outcome'])
const hook: TraceHook = async (task: TaskTrace) => void task
new ThreadPool({ trace: hook })
// @ts-expect-error a hook is a function
new ThreadPool({ trace: 'console' })

// Messages of clusters.
const cluster = new Cluster({ exec: 'server.mjs' })
cluster.on('message', (worker, message, fds) => {
  const isSent: boolean = worker.send(message, { fds })
  void isSent
})
cluster.on('request', (worker, request) => request.reply([worker.slot, request.value]))
cluster.on('log', (worker, line) => {
  const { stream, text, more }: ClusterLine = line
  const from: 'stdout' | 'stderr' = stream
  console.log(worker.slot, from, text.length, more === true)
})
cluster.on('unresponsive', (worker, { cause, stack }) => {
  const said: [number, string, string[] | undefined] = [worker.slot, cause, stack?.split('\n')]
  said.pop()
})
void cluster.request(0, { ask: 1 }, { timeout: 1000 })
const missed: number[] = cluster.broadcast('all', { fds: [0] }).map(({ worker }) => worker.slot)
void missed
const member = currentWorker()
if (member !== null && 'slot' in member) {
  member.on('message', (message, fds: number[]) => member.send({ message, fds: fds.length }))
  void member.request('who', { signal: AbortSignal.timeout(1) })
  member.channel.unref()
  // @ts-expect-error a worker has no slot to send to
  member.send(0, 'text', [])
}

nodeCluster.setupPrimary({ exec: 'worker.js', args: ['--use', 'https'] })
nodeCluster.schedulingPolicy = nodeCluster.SCHED_NONE
if (isPrimary) fork().disconnect()
