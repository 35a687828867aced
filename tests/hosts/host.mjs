// A Node.js program with a pool of processes, under a storm of kills or a mixed load: see main.rs.
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as after } from 'node:timers/promises'
import { ProcessPool } from '../../bindings-node/lib/index.mjs'
import { collect } from './work.mjs'

const args = Object.fromEntries(process.argv.slice(2).map((part) => part.split('=')))
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const worker = new URL('./work.mjs', import.meta.url)

/** The runner looks at this process while nothing runs. What a collection finds is given back in later
 * turns of the loop, a closed pool after seconds. */
async function mark(name, ms = 60) {
  for (let left = ms; left > 0; left -= 20) {
    collect()
    await after(20)
  }
  console.log(`mark ${name}`)
  const answered = answers.next()
  let looks = true
  answered.then(() => (looks = false))
  while (looks) {
    collect()
    await Promise.race([answered, after(100)])
  }
}

/** mulberry32, by seed. */
let state = Number(args.seed) >>> 0
function below(n) {
  state = (state + 0x6d2b79f5) >>> 0
  let t = Math.imul(state ^ (state >>> 15), state | 1)
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
  return ((t ^ (t >>> 14)) >>> 0) % n
}

function check(holds, what) {
  if (!holds) throw new Error(what)
}

/** Which process a number is, if it is a live child: the number of one that is gone may be anybody's. */
function life(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return Number(fields[1]) === process.pid && fields[0] !== 'Z' ? `${pid} ${fields[19]}` : undefined
  } catch {
    return undefined
  }
}

/**
 * Kills workers until `kills` are dead, each with a task that waits for its end, and others at any point of theirs. Every task has one
 * outcome: its own result, or WorkerLost.
 */
async function storm(kills) {
  const pool = new ProcessPool(worker, { maxWorkers: 3, concurrency: 3 })
  const dead = new Set()
  const counts = { done: 0, lost: 0, poison: 0 }
  let next = 0
  function lost(error) {
    check(error.code === 'ERR_OFFLOOP_WORKER_LOST' && error.signal === 'SIGKILL', error.stack)
    counts.lost++
    if (error.poison) counts.poison++
  }
  async function one() {
    const i = next++
    const name = i % 3 === 2 ? 'sleep' : 'echo'
    const task = name === 'sleep' ? 2 : i
    const got = await pool.run(task, { name, retries: i % 5 === 0 ? 2 : 0 }).catch(lost)
    if (got === undefined) return
    check(got === task, `${name}(${task}) gave ${got}`)
    counts.done++
  }
  async function onProgress(pid) {
    await after(below(6))
    const victim = life(pid)
    if (victim === undefined) return
    try {
      process.kill(pid, 'SIGKILL')
      dead.add(victim)
    } catch (error) {
      check(error.code === 'ESRCH', error.stack) // it was on its way out
    }
  }
  async function hold() {
    next++
    const got = await pool.run(undefined, { name: 'hold', onProgress }).catch(lost)
    check(got === undefined, `hold gave ${got}`)
  }
  async function lane(task) {
    while (dead.size < kills) await task()
  }
  await Promise.all([...Array.from({ length: 60 }, () => lane(one)), ...Array.from({ length: 3 }, () => lane(hold))])
  const { stats } = pool
  await pool.close()
  check(stats.submitted === next && stats.completed === counts.done && stats.lost === counts.lost, `${JSON.stringify(stats)} of ${next} ${JSON.stringify(counts)}`)
  return { kills: dead.size, tasks: next, ...counts, retried: stats.retried ?? 0 }
}

function same(got, value) {
  if (value instanceof Uint8Array) check(Buffer.compare(got, value) === 0, 'bytes came back as others')
  else check(JSON.stringify(got) === JSON.stringify(value), `${value} came back as ${got}`)
}

const echo = async (pool, value) => same(await pool.run(value, { name: 'echo' }), value)

const fails = (pool, i) =>
  pool.run(i, { name: 'fail' }).then(
    () => check(false, 'fail did not'),
    (error) => check(error.message === `no row ${i}`, error.stack),
  )

async function cancelled(pool) {
  const abort = new AbortController()
  const task = pool.run(1000, { name: 'sleep', signal: abort.signal })
  setTimeout(() => abort.abort(), below(4))
  await task.then(
    () => check(false, 'sleep was not cancelled'),
    (error) => check(error.code === 'ERR_OFFLOOP_CANCELLED' || error.name === 'AbortError', error.stack),
  )
}

/** One round of everything, checked. */
async function round(pool, counts, long = true) {
  const tasks = []
  for (let i = 0; i < 200; i++) tasks.push(echo(pool, i % 2 ? { id: i, name: 'row', tags: ['a', i] } : i))
  for (let i = 0; long && i < 10; i++) tasks.push(echo(pool, new Uint8Array(100_000).fill(below(256))))
  if (long) tasks.push(echo(pool, new Uint8Array(4 << 20).fill(below(256))))
  for (let i = 0; i < 20; i++) tasks.push(fails(pool, i))
  for (let i = 0; i < 10; i++) tasks.push(cancelled(pool))
  await Promise.all(tasks)
  counts.calls += tasks.length
}

/** What a load does at this moment, and since when, for the watch on it. */
let step = 'begin'
let since = performance.now()
function now(what) {
  step = what
  since = performance.now()
}

/** The first round of new workers: how old they are, and what they had, would be what is measured. */
async function renew(pool, counts) {
  now('workers leave')
  pool.resize({ minWorkers: 0 })
  while (pool.stats.workers > 0) await after(10)
  pool.resize({ minWorkers: 2 })
  now('first round of new workers')
  await round(pool, counts)
  now('short rounds of new workers')
  // The last values may be kept for a while; then they are short ones.
  for (let i = 0; i < 5; i++) await round(pool, counts, false)
  now('both sleep')
  await Promise.all(Array.from({ length: 2 }, () => pool.run(100, { name: 'sleep' })))
}

async function load(seconds, marks) {
  const pool = new ProcessPool(worker, { minWorkers: 2, maxWorkers: 2, maxTasksPerWorker: 1000, cancelGrace: 5000, idleTimeout: 100 })
  const counts = { calls: 0, rounds: 0 }
  // Ends a hang, and says where.
  const watch = setInterval(() => {
    if (performance.now() - since < 60_000) return
    console.log(`fail it stands still (${step}): ${JSON.stringify(pool.stats)} after ${JSON.stringify(counts)}`)
    process.exit(1)
  }, 1000)
  // Shared memory that was used once stays: more than there will be at once, so that no later peak is taken for a leak.
  await Promise.all(Array.from({ length: 6 }, () => round(pool, counts)))
  const from = performance.now()
  for (let n = 0; n < marks; n++) {
    do {
      now('round')
      await round(pool, counts)
      counts.rounds++
      now('broadcast')
      // What nobody has any more keeps its shared memory until it is collected.
      await pool.broadcast(undefined, { name: 'collect' })
      collect()
    } while (performance.now() - from < ((n + 1) * seconds * 1000) / marks)
    await renew(pool, counts)
    now('broadcast to new workers')
    await pool.broadcast(undefined, { name: 'collect' })
    now('mark')
    await mark(`load${n}`)
  }
  const { recycled } = pool.stats
  now('close')
  await pool.close()
  clearInterval(watch)
  return { ...counts, recycled: recycled ?? 0 }
}

try {
  let found
  if (args.role === 'storm') {
    await storm(Number(args.warm))
    await mark('before', 7000)
    found = await storm(Number(args.kills))
    await mark('after', 7000)
  } else found = await load(Number(args.seconds), Number(args.marks))
  console.log(`done ${Object.entries(found).map(([key, n]) => `${key}=${n}`).join(' ')}`)
} catch (error) {
  console.log(`fail ${String(error.stack ?? error).replaceAll('\n', ' | ')}`)
  process.exitCode = 1
}
process.stdin.destroy()
