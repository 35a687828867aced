// The command of the package: that it is there, and how it ends. What it prints is tested in the core.

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { RingBuffer } from '../lib/index.mjs'

const root = new URL('../', import.meta.url)
const { bin, version } = JSON.parse(readFileSync(new URL('package.json', root), 'utf8'))

/** Status, output and errors of a command line. */
const offloop = (...args) =>
  new Promise((resolve) => {
    execFile(process.execPath, [fileURLToPath(new URL(bin.offloop, root)), ...args], (error, out, err) =>
      resolve([error?.code ?? 0, out, err]),
    )
  })

test('ring stat and tail look at a ring that others use', async (t) => {
  const path = join(tmpdir(), `offloop-cli-node-${process.pid}`)
  const ring = RingBuffer.create({ kind: 'spsc', path })
  t.after(() => ring.remove())
  const producer = ring.producer()
  // It has its seat as long as somebody may want it.
  t.after(() => producer.close())
  producer.tryPush(Uint8Array.of(1, 2, 3))
  const [status, out, err] = await offloop('ring', 'stat', path, '--json')
  assert.deepEqual([status, err], [0, ''])
  const stat = JSON.parse(out)
  assert.deepEqual([stat.kind, stat.lanes[0].records, stat.participants[0].pid], ['spsc', 1, process.pid])
  const [ended, lines] = await offloop('ring', 'tail', path, '--json', '--interval', '0.01', '--count', '2')
  assert.equal(ended, 0)
  const [line] = lines.split('\n').map((text) => text && JSON.parse(text))
  assert.deepEqual([line.pushed_per_s, line.queued, line.closed], [0, 1, false])
})

test('its exit status and outputs are those of a command', async () => {
  assert.deepEqual(await offloop('--version'), [0, `offloop ${version}\n`, ''])
  const [status, out, err] = await offloop('ring', 'stat', '/nowhere/at-all')
  assert.deepEqual([status, out], [1, ''])
  assert.match(err, /^offloop: not found: .*\/nowhere\/at-all/)
  assert.equal((await offloop('rong'))[0], 2)
})
