// Worker files in TypeScript: the runtime loads them, by the flags that reach the threads.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { openWorkers, rejection, workerFile } from './support.mjs'

async function works(pool) {
  assert.equal(await pool.run({ x: 1, y: 2 }), 3)
  const steps = []
  for await (const step of pool.stream(3, { name: 'steps' })) steps.push(step)
  assert.deepEqual(steps, [0, 1, 2])
}

test('a loader in execArgv loads a worker file in TypeScript', async (t) => {
  await works(openWorkers(t, 'typed.ts', { maxWorkers: 1, execArgv: ['--import', workerFile('typescript.mjs').href] }))
})

test('a loader of the process is one of its workers', async () => {
  const args = ['--import', workerFile('typescript.mjs').href, fileURLToPath(workerFile('typed-main.mjs'))]
  const { stdout, stderr } = await promisify(execFile)(process.execPath, args, { env: { ...process.env, NODE_OPTIONS: '' } })
  assert.deepEqual([stdout, stderr], ['3\n', ''])
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
