// Lines of workers as events of their cluster.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { Cluster } from '../lib/index.mjs'
import { file } from './servers.mjs'

/** A cluster that has begun, and an array of all that it tells: lines as `[slot, stream, text]`, ends, warnings. */
async function hearing(t, options = {}) {
  const cluster = new Cluster({ exec: file('says.mjs'), workers: 1, minReady: 0, ...options })
  const heard = []
  cluster.on('log', (worker, { stream, text, more }) => heard.push(['log', worker, stream, more ? [text] : text]))
  cluster.on('exit', (worker, { signal }) => heard.push(['exit', worker, signal]))
  cluster.on('warning', (error) => heard.push(['warning', error]))
  cluster.on('stopped', () => heard.push(['stopped']))
  t.after(() => cluster.stop({ grace: 0 }))
  await cluster.start()
  return [cluster, heard]
}

const said = (heard, stream) => heard.filter(([what, , of]) => what === 'log' && of === stream).map(([, , , text]) => text)

test('lines are heard whole, in the order of their stream, before the end of their worker', { timeout: 60_000 }, async (t) => {
  const [cluster, heard] = await hearing(t)
  const worker = cluster.workers.get(0)
  cluster.send(0, { out: 'one\n\ntw', err: 'bad #\n', times: 2 })
  cluster.send(0, { out: new Uint8Array([0xff, 0x0a, 0x74, 0x61, 0x69, 0x6c]), end: 'exit' })
  await once(cluster, 'exit')
  assert.deepEqual(said(heard, 'stdout'), ['one', '', 'twone', '', 'tw\ufffd', 'tail'])
  assert.deepEqual(said(heard, 'stderr'), ['bad 0', 'bad 1'])
  assert.equal(heard.at(-1)[0], 'exit')
  assert.ok(heard.every(([, of]) => of === worker))
})

test('what workers have printed of a line when they are killed is heard, before their end', { timeout: 60_000 }, async (t) => {
  const workers = 8
  const [cluster, heard] = await hearing(t, { workers })
  for (let slot = 0; slot < workers; slot++) cluster.send(slot, { out: 'half a li', end: 'kill' })
  while (heard.length < 2 * workers) await once(cluster, 'exit')
  for (let slot = 0; slot < workers; slot++) {
    assert.deepEqual(
      heard.filter(([, worker]) => worker.slot === slot).map(([what, , of, text]) => [what, of, text]),
      [
        ['log', 'stdout', 'half a li'],
        ['exit', 'SIGKILL', undefined],
      ],
    )
  }
})

test('a line that is too long comes in parts that are text', { timeout: 60_000 }, async (t) => {
  const [cluster, heard] = await hearing(t)
  const long = `x${'\u{1F980}'.repeat(40_000)}`
  cluster.send(0, { out: `${long}\nshort\n` })
  let lines = []
  for (; lines.at(-1) !== 'short'; lines = said(heard, 'stdout')) await once(cluster, 'log')
  assert.deepEqual(
    lines.map((line) => typeof line),
    ['object', 'object', 'string', 'string'],
  )
  assert.ok(lines.slice(0, 3).flat().join('') === long)
  assert.equal(lines[3], 'short')
})

test('no worker waits for a loop that does not turn, and what is left out is counted', { timeout: 120_000 }, async (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'offloop-log-'))
  t.after(() => fs.rmSync(dir, { recursive: true }))
  const [workers, each] = [4, 25_000]
  const [cluster, heard] = await hearing(t, { workers, heartbeat: false })
  for (let slot = 0; slot < workers; slot++) cluster.send(slot, { out: `${slot} #\n`, times: each, file: path.join(dir, `${slot}`) })
  const nobody = new Int32Array(new SharedArrayBuffer(4))
  while (fs.readdirSync(dir).length < workers) Atomics.wait(nobody, 0, 0, 10)
  assert.equal(heard.length, 0)
  const count = () => {
    const warned = heard
      .filter(([what]) => what === 'warning')
      .map(([, { message }]) => Number(/lines=(\d+), max_bytes=1048576/.exec(message)[1]))
    return [said(heard, 'stdout').length, warned.reduce((sum, n) => sum + n, 0)]
  }
  cluster.on('log', () => {})
  while (count()[0] + count()[1] < workers * each) await new Promise((resolve) => setTimeout(resolve, 10))
  const first = heard.findIndex(([what]) => what === 'warning')
  assert.equal(heard[first][1].code, 'ERR_OFFLOOP_FULL')
  assert.ok(heard.slice(0, first).reduce((sum, [, , , text]) => sum + text.length + 64, 0) <= 1 << 20)
  // There is room again.
  heard.length = 0
  cluster.send(1, { out: 'again\n' })
  await once(cluster, 'log')
  await cluster.stop({ grace: 0 })
  assert.deepEqual(said(heard, 'stdout'), ['again'])
  assert.ok(!heard.some(([what]) => what === 'warning'))
  assert.equal(heard.at(-1)[0], 'stopped')
})

test('lines go where log says, too, and to who listens later', { timeout: 60_000 }, async (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'offloop-log-'))
  t.after(() => fs.rmSync(dir, { recursive: true }))
  const log = path.join(dir, 'log')
  const cluster = new Cluster({ exec: file('says.mjs'), workers: 1, minReady: 0, log })
  t.after(() => cluster.stop({ grace: 0 }))
  await cluster.start()
  const { pid } = cluster.workers.get(0)
  const heard = []
  const hear = (_, { text }) => heard.push(text)
  cluster.on('log', hear)
  await new Promise(setImmediate)
  cluster.send(0, { out: 'one\n' })
  await once(cluster, 'log')
  cluster.removeAllListeners('log')
  await new Promise(setImmediate)
  cluster.send(0, { out: 'two\n', end: 'exit' })
  await once(cluster, 'exit')
  await cluster.stop({ grace: 0 })
  assert.deepEqual(heard, ['one'])
  assert.equal(fs.readFileSync(log, 'utf8'), `[0:${pid}] one\n[0:${pid}] two\n`)
})

test('a listener that throws hears the next line, and without log nothing is printed', { timeout: 60_000 }, async () => {
  const lines = Array.from({ length: 6 }, (_, i) => `line ${i}`)
  for (const [log, printed] of [
    [[], ''],
    [['raw'], `${lines.join('\n')}\n`],
  ]) {
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [file('hears.mjs'), ...log], { timeout: 50_000 })
    assert.equal(stderr, '')
    assert.ok(stdout.startsWith(`${printed}[`), stdout)
    const heard = JSON.parse(stdout.slice(printed.length))
    assert.deepEqual(
      heard.filter((text) => text !== 'mine'),
      lines,
    )
    assert.ok(heard.includes('mine'))
  }
})

test('a spare is heard under the name that it has', { timeout: 60_000 }, async (t) => {
  const [cluster, heard] = await hearing(t, { spares: 1 })
  if (!heard.some(([what]) => what === 'spare')) await once(cluster, 'spare')
  cluster.send(0, { end: 'kill' })
  const [worker] = await once(cluster, 'ready')
  cluster.send(0, { out: 'here\n' })
  const [printer, { text }] = await once(cluster, 'log')
  assert.deepEqual([printer, printer.slot, text], [worker, 0, 'here'])
})
