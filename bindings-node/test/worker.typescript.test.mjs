// Worker files in TypeScript: the runtime loads them, by the flags that reach the threads.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import Piscina from '../lib/piscina.mjs'
import { openProcesses } from './processes.mjs'
import { openWorkers, rejection, workerFile } from './support.mjs'

async function works(pool) {
  assert.equal(await pool.run({ x: 1, y: 2 }), 3)
  const steps = []
  for await (const step of pool.stream(3, { name: 'steps' })) steps.push(step)
  assert.deepEqual(steps, [0, 1, 2])
}

/** A loader that `import` does not ask. */
const FOR_REQUIRE = ['--require', fileURLToPath(workerFile('typescript-require.cjs'))]

test('a loader in execArgv loads a worker file in TypeScript', async (t) => {
  await works(openWorkers(t, 'typed.ts', { maxWorkers: 1, execArgv: ['--import', workerFile('typescript.mjs').href] }))
})

test('a loader for require alone loads what import does not know', async (t) => {
  const options = { maxWorkers: 1, execArgv: FOR_REQUIRE }
  await works(openWorkers(t, 'points.typed', options))
  await works(openProcesses(t, workerFile('points.typed'), options))
  const pool = new Piscina({ filename: workerFile('points.typed').href, maxThreads: 1, execArgv: FOR_REQUIRE })
  t.after(() => pool.destroy())
  assert.equal(await pool.run({ x: 1, y: 2 }), 3)
})

test('what a file throws under such a loader is told, not that import does not know it', async (t) => {
  const error = await rejection(openWorkers(t, 'throws.typed', { maxWorkers: 1, execArgv: FOR_REQUIRE }).run(1))
  assert.deepEqual([error.code, error.cause.name, /JSON/.test(error.message)], ['ERR_OFFLOOP_START_FAILED', 'SyntaxError', true])
})

test('without a loader for either the error is that of import', async (t) => {
  for (const pool of [openWorkers(t, 'points.typed', { maxWorkers: 1 }), openProcesses(t, workerFile('points.typed'))]) {
    const error = await rejection(pool.run(1))
    assert.equal(error.code, 'ERR_OFFLOOP_START_FAILED')
    assert.match(error.message, /Unknown file extension "\.typed"/)
  }
})

test('a loader of the process is one of its workers', async () => {
  for (const [flags, file] of [
    [['--import', workerFile('typescript.mjs').href], 'typed.ts'],
    [FOR_REQUIRE, 'points.typed'],
  ]) {
    const args = [...flags, fileURLToPath(workerFile('typed-main.mjs')), file]
    const { stdout, stderr } = await promisify(execFile)(process.execPath, args, { env: { ...process.env, NODE_OPTIONS: '' } })
    assert.deepEqual([stdout, stderr], ['3\n', ''])
  }
})

const canStrip = process.allowedNodeEnvironmentFlags.has('--experimental-strip-types')

test('types are stripped by the runtime that can', { skip: !canStrip && 'this release of Node.js strips no types' }, async (t) => {
  await works(openWorkers(t, 'typed.ts', { maxWorkers: 1, execArgv: ['--experimental-strip-types', '--no-warnings'] }))
})

test('without a loader the error says what is missing', { skip: canStrip && 'types may be stripped by default' }, async (t) => {
  const error = await rejection(openWorkers(t, 'typed.ts', { maxWorkers: 1 }).run({ x: 1, y: 2 }))
  assert.equal(error.code, 'ERR_OFFLOOP_START_FAILED')
  assert.match(error.message, /Unknown file extension "\.ts"/)
})
