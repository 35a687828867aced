// ProcessPool: workers in Python, called by name.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { directory, openProcesses } from './processes.mjs'
import { rejection, script, until } from './support.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url))
const library = path.join(root, 'bindings-python/python')
const interpreter = path.join(root, '.venv/bin/python')
const skip =
  ['_native.abi3.so', 'worker.py'].some((name) => !fs.existsSync(path.join(library, 'offloop', name))) && 'the Python library is not built'

const options = {
  maxWorkers: 1,
  python: fs.existsSync(interpreter) ? interpreter : undefined,
  env: { ...process.env, PYTHONPATH: library },
}

function scoring(t) {
  const file = path.join(directory(t), 'scoring.py')
  fs.writeFileSync(
    file,
    `
import os
from offloop import current_task
def init(context):
    global given
    given = context
def contexts():
    return [given, current_task().context]
def predict(rows, k):
    return [row * k for row in rows]
def echo(value):
    return value
def give_set():
    return {1}
def fail():
    raise ValueError("no such row")
def leave(code):
    os._exit(code)
`,
  )
  return { python: file }
}

test('a Python script has the context of the pool, in its init and in current_task()', { skip }, async (t) => {
  const context = { region: 'eu', limits: [1, 2.5], made: new Date(5) }
  assert.deepEqual(await openProcesses(t, scoring(t), { ...options, context }).exports.contexts(), [context, context])
  assert.deepEqual(await openProcesses(t, scoring(t), options).exports.contexts(), [null, null])
})

test('functions of a Python script are called by name, with values of any language', { skip }, async (t) => {
  const pool = openProcesses(t, scoring(t), options)
  assert.deepEqual(await pool.exports.predict([1, 2, 3], 2), [2, 4, 6])
  assert.deepEqual(await pool.run({ a: 1 }, { name: 'echo' }), { a: 1 })
  for (const value of [null, 1.5, 'text', new Date(5), new Uint8Array(10), new Uint8Array(1 << 20), new Float64Array(100_000).fill(2.5)]) {
    assert.deepStrictEqual(await pool.exports.echo(value), value)
  }
  const refused = await rejection(pool.exports.give_set())
  assert.match(refused.message, /value of this type cannot travel \(type=set\)/)
  assert.deepEqual(await Promise.all(Array.from({ length: 500 }, (_, i) => pool.exports.echo(i))), [...Array(500).keys()])
})

test('generators of Python stream, leave early, and fail after their values', { skip }, async (t) => {
  const { python } = scoring(t)
  const ended = path.join(path.dirname(python), 'ended')
  fs.appendFileSync(
    python,
    `
def numbers(n, fail=-1):
    try:
        for i in range(n):
            if i == fail:
                raise ValueError(f"at {i}")
            yield i
    finally:
        open(${JSON.stringify(ended)}, "a").write("x")
async def later(n):
    for i in range(n):
        yield {"i": i, "bytes": bytes([i % 256]) * 10_000}
`,
  )
  const pool = openProcesses(t, { python }, options)
  const collect = async (stream, to = []) => {
    for await (const value of stream) to.push(value)
    return to
  }
  assert.deepEqual(await collect(pool.stream(1000, { name: 'numbers' })), [...Array(1000).keys()])
  const seen = await collect(pool.stream(100, { name: 'later' }))
  assert.ok(seen.length === 100 && seen.every(({ i, bytes }, at) => i === at && bytes.length === 10_000 && bytes[9999] === i))
  for await (const value of pool.stream(1e9, { name: 'numbers' })) if (value === 150) break
  assert.equal(fs.readFileSync(ended, 'utf8'), 'xx')
  const got = []
  const error = await rejection(collect(pool.stream('no number', { name: 'numbers' }), got))
  assert.deepEqual([error.name, got], ['TypeError', []])
  assert.deepEqual(await pool.exports.echo(1), 1)
})

test('a worker in Python writes to the output of this process, and ends well with its pool', { skip }, async (t) => {
  const { python } = scoring(t)
  fs.appendFileSync(python, '\ndef say(text):\n    print(text)\ndef close_output():\n    import sys\n    sys.stdout.close()\n')
  const { code, out, err } = await script(
    `
    const { ProcessPool } = await import(offloopUrl)
    const ends = []
    for (const name of ['say', 'close_output']) {
      const pool = new ProcessPool(${JSON.stringify({ python })}, ${JSON.stringify(options)})
      pool.on('workerExit', ({ exitCode }) => ends.push(exitCode))
      await pool.run(name === 'say' ? 'from Python' : undefined, { name })
      await pool.close()
    }
    console.log(ends.join())`,
  )
  assert.deepEqual([code, out, err], [0, 'from Python\n0,0\n', ''])
})

test('errors of Python arrive with name, message and stack; a lost process is replaced', { skip }, async (t) => {
  const pool = openProcesses(t, scoring(t), options)
  const exits = []
  pool.on('workerExit', (worker) => exits.push(worker.exitCode))
  const error = await rejection(pool.exports.fail())
  assert.deepEqual([error.name, error.message], ['ValueError', 'no such row'])
  assert.match(error.stack, /scoring\.py/)
  assert.equal((await rejection(pool.exports.nothing())).code, 'ERR_OFFLOOP_NOT_FOUND')
  const lost = await rejection(pool.exports.leave(3))
  assert.deepEqual([lost.code, lost.exitCode], ['ERR_OFFLOOP_WORKER_LOST', 3])
  assert.equal(await pool.exports.echo(1), 1)
  await until(() => exits.length > 0)
  assert.equal(exits[0], 3)
})
