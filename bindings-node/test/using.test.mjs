// `await using`, on runtimes that know the syntax.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ThreadPool } from '../lib/index.mjs'
import { rejection } from './support.mjs'

const AsyncFunction = (async () => {}).constructor

function compile() {
  try {
    return new AsyncFunction(
      'ThreadPool',
      `await using pool = new ThreadPool({ maxWorkers: 1 })
       const task = pool.run('noop', Uint8Array.of(1))
       return { pool, task }`,
    )
  } catch {
    return null
  }
}

const body = compile()

test('await using closes the pool at the end of its block, after its tasks', {
  skip: body === null && 'no `await using` on this Node',
}, async () => {
  const { pool, task } = await body(ThreadPool)
  assert.deepEqual(await task, Uint8Array.of(1))
  assert.equal((await rejection(pool.run('noop'))).code, 'ERR_OFFLOOP_CLOSED')
})
