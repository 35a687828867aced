// What the benchmarks of Node.js have in common: ours and the peers in turns, one line `R case who value` per round.

import { once } from 'node:events'
import { createServer } from 'node:net'
import { setTimeout as pause } from 'node:timers/promises'

const ROUNDS = Number(process.env.ROUNDS ?? 5)
const MS = Number(process.env.MS ?? 500)
const IN_FLIGHT = 1000
export const print = (name, who, value) => console.log(`R ${name} ${who} ${value}`)

export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

/** Lateness of a 1 ms timer, p99 in ms, while `body` runs. */
export async function loopDelay(body) {
  const late = []
  let due = performance.now() + 1
  let timer
  const tick = () => {
    const now = performance.now()
    late.push(Math.max(0, now - due))
    due = now + 1
    timer = setTimeout(tick, 1)
  }
  timer = setTimeout(tick, 1)
  const value = await body()
  clearTimeout(timer)
  late.sort((a, b) => a - b)
  return [value, late[Math.floor(late.length * 0.99)] ?? Number.NaN]
}

/** Calls per second with so many in flight. */
export function saturate(call, ms = MS, inFlight = IN_FLIGHT) {
  return new Promise((resolve, reject) => {
    const start = performance.now()
    let done = 0
    let live = 0
    let ended = false
    const next = () => {
      live++
      call().then(() => {
        live--
        done++
        ended ||= performance.now() - start > ms
        if (!ended) next()
        else if (live === 0) resolve((done * 1000) / (performance.now() - start))
      }, reject)
    }
    for (let i = 0; i < inFlight; i++) next()
  })
}

export async function duel(name, sides, delay = false) {
  for (const [, call] of sides) await saturate(call, MS / 5)
  for (let round = 0; round < ROUNDS; round++) {
    for (const [who, call] of sides) {
      const [rate, p99] = await loopDelay(() => saturate(call))
      print(name, who, rate)
      if (delay) print(`${name}.loop_p99`, who, p99)
    }
  }
}

/** Median time of a call of each side, in units of which a millisecond has `perMs`. */
export async function single(name, sides, times = 9, perMs = 1) {
  for (let round = 0; round < ROUNDS; round++) {
    for (const [who, call] of sides) {
      await call()
      const took = []
      for (let i = 0; i < times; i++) {
        const start = performance.now()
        await call()
        took.push(performance.now() - start)
      }
      print(name, who, took.sort((a, b) => a - b)[times >> 1] * perMs)
    }
  }
}

/** Milliseconds from the making of a pool to its first result; sides are name, make, call. */
export async function first(name, sides) {
  for (let round = 0; round < ROUNDS; round++) {
    for (const [who, make, call] of sides) {
      const start = performance.now()
      const pool = make()
      await call(pool)
      print(name, who, performance.now() - start)
      // A worker of piscina that is ended while it loads can abort the process.
      await pause(100)
      await pool.close()
    }
  }
}
