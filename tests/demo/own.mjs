// Functions of one's own, inline and offloaded, and a function of Python called from here. One line each: name=value parts.
import { setImmediate as turn } from 'node:timers/promises'
import { ProcessPool, WorkerPool } from '../../bindings-node/lib/index.mjs'
import { primes } from './own_primes.mjs'

const [calls, n] = process.argv.slice(2).map(Number)

/** How long `work` takes, and how late a 1 ms timer is meanwhile, at worst. */
async function show(name, work) {
  let late = 0
  let last = performance.now()
  const timer = setInterval(() => {
    late = Math.max(late, performance.now() - last - 1)
    last = performance.now()
  }, 1)
  const from = performance.now()
  const result = await work()
  const ms = performance.now() - from
  await turn()
  late = Math.max(late, performance.now() - last - 1)
  clearInterval(timer)
  console.log(`way=${name} ms=${ms} late_ms=${late} result=${result}`)
}

const all = (each) => Promise.all(Array.from({ length: calls }, each))
const last = (results) => results.at(-1)

await show('inline', async () => last(Array.from({ length: calls }, () => primes(n))))
for (const Pool of [WorkerPool, ProcessPool]) {
  const pool = new Pool(new URL('own_primes.mjs', import.meta.url))
  await all(() => pool.exports.primes(2))
  await show(Pool.name, async () => last(await all(() => pool.exports.primes(n))))
  await pool.close()
}

const python = new ProcessPool({ python: new URL('own_model.py', import.meta.url).pathname })
await python.exports.predict(new Float64Array(2))
const rows = Float64Array.from({ length: 2e4 }, (_, i) => Math.sin(i))
await show('Node.js→Python', async () => last(await all(() => python.exports.predict(rows))))
await python.close()
