// The command of the package: that it is there, and how it ends. What it prints is tested in the core.

import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { RingBuffer } from '../lib/index.mjs'
import { directory } from './processes.mjs'
import { rejection } from './support.mjs'

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

/** `offloop run` with what is in `place`: its process, its lines, its end. */
function run(place, ...args) {
  const env = { ...process.env, XDG_RUNTIME_DIR: place, NODE_OPTIONS: '--no-warnings' }
  const file = fileURLToPath(new URL(bin.offloop, root))
  const child = spawn(process.execPath, [file, 'run', '-n', 't', ...args], { env, stdio: ['ignore', 'inherit', 'pipe'] })
  return { child, ended: once(child, 'exit'), lines: createInterface({ input: child.stderr })[Symbol.asyncIterator]() }
}

test('run tells of a blocked loop with its stack', async (t) => {
  const script = fileURLToPath(new URL('clusters/stalls.mjs', import.meta.url))
  const { child, ended, lines } = run(directory(t), '-w', '1', '--hang-timeout', '0.4', '--', 'node', script)
  t.after(() => child.kill())
  const [, port] = /1 worker is ready at 127\.0\.0\.1:(\d+)$/.exec((await lines.next()).value)
  const lost = rejection(fetch(`http://127.0.0.1:${port}/loop`))
  const said = [await lines.next(), await lines.next(), await lines.next()].map(({ value }) => value)
  assert.equal(said[0], 'offloop: worker 0 does not respond: its event loop stands still')
  assert.match(said[1], /^ {4}at spin \(file:.*\/stalls\.mjs:\d+:\d+\)$/)
  assert.match(said[2], /^ {4}at file:.*\/stalls\.mjs:\d+:\d+$/)
  await lost
  child.kill('SIGTERM')
  await ended
})

test('run serves an unmodified script, and no Node.js stays beside its workers', async (t) => {
  const place = directory(t)
  const said = join(place, 'said')
  const script = join(place, 'server.js')
  writeFileSync(
    script,
    `const { NODE_OPTIONS, OFFLOOP_CLUSTER, LISTEN_FDS } = process.env
    require('node:fs').writeFileSync(${JSON.stringify(said)}, JSON.stringify([NODE_OPTIONS, OFFLOOP_CLUSTER ?? null, LISTEN_FDS]))
    require('node:http').createServer((request, response) => response.end('hello')).listen(0, '127.0.0.1')\n`,
  )
  const { child, ended, lines } = run(place, '-w', '2', '--listen', '127.0.0.1:0', '--', 'node', script)
  const line = (await lines.next()).value
  const [, port] = /2 workers are ready at 127\.0\.0\.1:(\d+)$/.exec(line) ?? assert.fail(line)
  assert.equal(await (await fetch(`http://127.0.0.1:${port}/`)).text(), 'hello')
  // What the worker started with, without what made it one.
  assert.deepEqual(JSON.parse(readFileSync(said, 'utf8')), ['--no-warnings', null, '1'])
  assert.doesNotMatch(readlinkSync(`/proc/${child.pid}/exe`), /\/node$/)
  child.kill('SIGTERM')
  assert.deepEqual(await ended, [0, null])
})
