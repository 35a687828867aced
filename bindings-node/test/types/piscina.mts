import Default, {
  FixedQueue,
  isWorkerThread,
  move,
  Piscina,
  type PiscinaLoadBalancer,
  queueOptionsSymbol,
  type TaskQueue,
  transferableSymbol,
  valueSymbol,
  workerData,
} from 'offloop/piscina'

const pool = new Piscina<{ a: number }, string>({
  filename: new URL('file:///w.mjs').href,
  minThreads: 1,
  maxThreads: 2,
  maxQueue: 'auto',
  taskQueue: new FixedQueue(),
  resourceLimits: { maxOldGenerationSizeMb: 64 },
})
const text: string = await pool.run({ a: 1 }, { name: 'add', signal: AbortSignal.timeout(5), transferList: [new ArrayBuffer(8)] })
const emitter = new (await import('node:events')).EventEmitter()
void pool.run({ a: 1 }, { signal: emitter, filename: null })
// @ts-expect-error a task of another type
void pool.run({ b: 1 })
// @ts-expect-error an option that calls do not have
void pool.run({ a: 1 }, { timeout: 5 })
// @ts-expect-error a word that it does not know
new Default({ atomics: 'never' })
const p99: number = pool.histogram.runTime.p99
const id: number | undefined = pool.threads[0]?.threadId
const balancer: PiscinaLoadBalancer = (task, workers) => (task.isAbortable ? null : (workers.find((w) => w.currentUsage === 0) ?? null))
const queue: TaskQueue = { size: 0, push: (task) => void task[queueOptionsSymbol], shift: () => null, remove() {} }
const other: Default = new Default({ loadBalancer: balancer, taskQueue: queue })
const bytes: Uint8Array = move(new Uint8Array(8))
const whole = move({ [transferableSymbol]: bytes.buffer, [valueSymbol]: { bytes } })
const queued: boolean = Piscina.isWorkerThread || isWorkerThread || pool.needsDrain
const typed: typeof Piscina = Piscina.Piscina
await pool.close({ force: true })
await other.destroy()
void [text, p99, id, whole, queued, typed, workerData, Piscina.move(bytes), Piscina.version]
