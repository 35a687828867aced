// Thenables that functions of a worker file, iterators and hooks give: taken as `await` takes them, once.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import Piscina from '../lib/piscina.mjs'
import { openProcesses } from './processes.mjs'
import { openWorkers, rejection, workerFile } from './support.mjs'
import * as file from './workers/thenables.mjs'

const thenables = { ...file }

const RESULTS = {
  twice: 'first',
  twiceLate: 'first',
  both: 'first',
  settlesThenThrows: 'first',
  nested: 42,
  isFunction: 'of a function',
  overridden: 'real',
  subclass: 'first',
  plainSubclass: 'plain',
}
const ERRORS = { throws: /^then throws$/, getterThrows: /^no then$/, rejects: /^mine$/, imitates: /incompatible receiver/ }

/** `run(name, value)` calls each of them, and others between. */
async function holds(run) {
  for (let round = 0; round < 3; round++) {
    for (const [name, result] of Object.entries(RESULTS)) {
      assert.equal(await run(name), result, name)
      // What it does afterwards is no other call's result.
      assert.equal(await run('later', `${name} ${round}`), `${name} ${round}`)
    }
    for (const [name, message] of Object.entries(ERRORS)) {
      assert.match((await rejection(run(name))).message, message, name)
      assert.equal(await run('later', name), name)
    }
  }
  const names = Object.keys({ ...RESULTS, ...ERRORS })
  const outcomes = await Promise.all(names.map((name) => run(name).catch((error) => error.message)))
  for (let i = 0; i < names.length; i++) {
    if (Object.hasOwn(RESULTS, names[i])) assert.equal(outcomes[i], RESULTS[names[i]], names[i])
    else assert.match(outcomes[i], ERRORS[names[i]])
  }
}

test('what is expected here is what await gives', async () => {
  for (const [name, result] of Object.entries(RESULTS)) assert.equal(await thenables[name](), result, name)
  for (const [name, message] of Object.entries(ERRORS)) {
    assert.match((await rejection((async () => await thenables[name]())())).message, message, name)
  }
})

for (const [kind, open] of [
  ['WorkerPool', (t, options) => openWorkers(t, 'thenables.mjs', { maxWorkers: 1, ...options })],
  ['ProcessPool', (t, options) => openProcesses(t, workerFile('thenables.mjs'), { maxWorkers: 1, ...options })],
]) {
  for (const concurrency of [1, 4]) {
    test(`${kind}: a thenable is awaited, and settles its own call once, with concurrency ${concurrency}`, async (t) => {
      const pool = open(t, { concurrency })
      await holds((name, value) => pool.run(value, { name }))
      await pool.close()
      assert.deepEqual([pool.stats.running, pool.stats.lost], [0, 0])
    })
  }

  test(`${kind}: an iterator whose results are no objects is an error, of map and of a stream`, async (t) => {
    const pool = open(t)
    const stream = pool.stream(null, { name: 'broken' })
    assert.match((await rejection(stream.next())).message, /^iterator result is not an object$/)
    const map = pool.map(thenables.broken(), { name: 'later', concurrency: 2 })
    assert.match((await rejection(map.next())).message, /^iterator result is not an object$/)
    assert.equal(await pool.exports.add(1, 2), 3)
  })

  test(`${kind}: closing a source that throws or settles twice does not hide the error of map`, async (t) => {
    const pool = open(t)
    for (const close of [
      () => {
        throw new Error('closing')
      },
      thenables.twice,
      thenables.throws,
    ]) {
      const source = { [Symbol.iterator]: () => ({ next: () => ({ done: false, value: 0 }), return: close }) }
      assert.match((await rejection(pool.map(source, { name: 'throws', concurrency: 1 }).next())).message, /^then throws$/)
    }
  })
}

test('offloop/piscina: a thenable is awaited, and settles its own call once', async (t) => {
  const pool = new Piscina({ filename: workerFile('thenables.mjs').href, maxThreads: 1 })
  t.after(() => pool.destroy())
  await holds((name, value) => pool.run(value, { name }))
  await pool.close()
})

test('a trace hook that gives a thenable which rejects twice is warned of once', async (t) => {
  const warnings = []
  const onWarning = (warning) => warnings.push(warning)
  process.on('warning', onWarning)
  t.after(() => process.off('warning', onWarning))
  const trace = () => ({
    // biome-ignore lint/suspicious/noThenProperty: what the test is about
    then(_, reject) {
      reject(new Error('one'))
      reject(new Error('two'))
    },
  })
  const pool = openWorkers(t, 'thenables.mjs', { maxWorkers: 1, trace })
  assert.equal(await pool.exports.add(1, 2), 3)
  await pool.close()
  await new Promise(setImmediate)
  assert.deepEqual(
    warnings.map(({ message }) => message),
    ["the trace hook of pool 'pool' failed: Error: one"],
  )
})
