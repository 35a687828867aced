// A C plugin, compiled here, that links to nothing.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { OffloopError, ThreadPool } from '../lib/index.mjs'
import { openPool, rejection, script } from './support.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url))
const directory = fs.mkdtempSync(path.join(tmpdir(), 'offloop-plugin-'))
process.on('exit', () => fs.rmSync(directory, { recursive: true, force: true }))

function compile(name, source) {
  const out = path.join(directory, `${name}.so`)
  execFileSync('cc', ['-std=c99', '-O2', '-shared', '-fPIC', `-I${root}/include`, source, '-o', out], { stdio: 'pipe' })
  return out
}

const wordcount = compile('wordcount', path.join(root, 'examples/plugin/wordcount.c'))
const refused = (call, code, message) =>
  assert.throws(call, (error) => error instanceof OffloopError && error.code === code && message.test(error.message))

test('a plugin adds ops that take buffers, options, progress and cancellation', async (t) => {
  const pool = openPool(t, { maxWorkers: 2 })
  assert.deepEqual(pool.load(wordcount), ['wordcount'])
  assert.deepEqual(await pool.run('wordcount', Buffer.from('one three  twelve')), { words: 3, longest: 6 })
  assert.deepEqual(await pool.run('wordcount', Buffer.from('one three twelve'), { min_length: 4 }), { words: 2, longest: 6 })
  assert.deepEqual(await pool.runMany('wordcount', [Buffer.from('a'), Buffer.from('b c')]), [
    { words: 1, longest: 1 },
    { words: 2, longest: 1 },
  ])
  const error = await rejection(pool.run('wordcount', Buffer.from('x'), { min_length: 0 }))
  assert.equal(error.code, 'ERR_OFFLOOP_INVALID')
  assert.match(error.message, /min_length/)

  const seen = []
  const text = Buffer.alloc(24 << 20, 'word ')
  const { words } = await pool.run('wordcount', text, undefined, { onProgress: (value) => seen.push(value) })
  assert.equal(words, Math.ceil(text.length / 5))
  assert.ok(seen.length > 0 && seen.every((value) => value > 0 && value < 1), `${seen}`)
})

// tests/plugins/odd.c; the Python suite has the same table.
test('a result that a host cannot show is a typed error', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  pool.load(compile('odd', path.join(root, 'tests/plugins/odd.c')))
  const odd = (name) => pool.run('odd', Buffer.from(name))
  assert.equal((await odd('first of node')).getTime(), -8.64e15)
  assert.equal((await odd('last of node')).getTime(), 8.64e15)
  for (const name of ['before python', 'after python']) assert.ok(Number.isFinite((await odd(name)).getTime()), name)
  for (const name of ['before node', 'after node', 'far']) {
    const error = await rejection(odd(name))
    assert.equal(error.code, 'ERR_OFFLOOP_UNSUPPORTED', name)
    assert.match(error.message, /seconds=-?\d+/)
  }
  for (const name of ['no date', 'far behind nothing', 'far before nothing'])
    assert.equal((await rejection(odd(name))).code, 'ERR_OFFLOOP_INVALID', name)
  assert.deepEqual(await odd('empty'), new Uint16Array())
  assert.deepEqual(await odd('empty rows'), new Uint16Array())
  assert.deepEqual(await odd('square'), Uint16Array.of(0x201, 0x403, 0x605, 0x807))
  assert.deepEqual(await odd('scalar'), Uint16Array.of(0x201))
})

test('an exception in onProgress is an uncaught one, and the pool goes on', async () => {
  const { code, out, err } = await script(`
    const { ThreadPool } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 1 })
    pool.load(${JSON.stringify(wordcount)})
    const uncaught = new Set()
    process.on('uncaughtException', (error) => uncaught.add(error.message))
    const onProgress = () => { throw new Error('on purpose') }
    const { words } = await pool.run('wordcount', Buffer.alloc(24 << 20, 'word '), undefined, { onProgress })
    const after = await pool.run('wordcount', Buffer.from('a b'))
    console.log(words > 0, after.words, ...uncaught)
  `)
  assert.deepEqual([code, out, err], [0, 'true 2 on purpose\n', ''])
})

test('what is no plugin is a clear error', (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const empty = path.join(directory, 'empty.c')
  fs.writeFileSync(empty, 'int nothing;')
  pool.load(wordcount)
  refused(() => pool.load(wordcount), 'ERR_OFFLOOP_EXISTS', /wordcount/)
  refused(() => pool.load(path.join(directory, 'absent.so')), 'ERR_OFFLOOP_NOT_FOUND', /absent/)
  refused(() => pool.load(empty), 'ERR_OFFLOOP_INVALID', /empty/)
  refused(() => pool.load(compile('empty', empty)), 'ERR_OFFLOOP_NOT_FOUND', /offloop_plugin/)
  const other = new ThreadPool({ maxWorkers: 1 })
  assert.deepEqual(other.load(wordcount), ['wordcount'], 'a plugin belongs to the pool that loaded it')
  return other.close()
})
