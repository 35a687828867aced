import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { hold, openPool, rejection } from './support.mjs'

const { gc } = globalThis

/** Whether the collector takes everything behind `refs` within some turns of the loop. */
async function collected(refs) {
  for (let i = 0; i < 50; i++) {
    await turn()
    gc()
    if (refs.every((ref) => ref.deref() === undefined)) return true
  }
  return false
}

test('a settled task keeps neither its result nor its error', { skip: !gc }, async (t) => {
  const pool = openPool(t, { maxWorkers: 2, maxQueue: 1024 })
  const refs = []
  const note = (value) => {
    refs.push(new WeakRef(value))
  }
  // Alone, and so many that they are collected into one submit.
  for (const count of [1, 200]) {
    await Promise.all(Array.from({ length: count }, () => pool.run('noop', new Uint8Array(100)).then(note)))
    await Promise.all(Array.from({ length: count }, () => pool.run('noop', new Uint8Array(100_000)).then(note)))
  }
  const small = openPool(t, { maxWorkers: 1, maxQueue: 100 })
  const held = await hold(small)
  const calls = Array.from({ length: 200 }, () => small.run('noop').then(note, note))
  for (let i = 0; i < 10; i++) note(await rejection(small.run('noop')))
  await held.release()
  await Promise.all(calls)
  assert.ok(await collected(refs), 'results are still held')
})
