// Errors that are hard to send: of a WorkerPool, of a ProcessPool, and of one whose workers may be of any language.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { inspect } from 'node:util'
import { commonWorker, openProcesses } from './processes.mjs'
import { openWorkers, rejection, workerFile } from './support.mjs'
import { abortedFetch, nest } from './workers/errors.mjs'

const POOLS = [
  ['WorkerPool', (t) => openWorkers(t, 'errors.mjs', { maxWorkers: 1 }), false],
  ['ProcessPool', (t) => openProcesses(t, workerFile('errors.mjs'), { maxWorkers: 1 }), false],
  ['common form', (t) => openProcesses(t, commonWorker('errors.mjs'), { maxWorkers: 1 }), true],
]
const MAX = 128
const SHOWN = 64

/** The errors of a chain of causes. */
const chain = (error) => (error === undefined ? [] : [error, ...chain(error.cause)])

for (const [kind, open, isCommon] of POOLS) {
  test(`${kind}: a DOMException that is thrown keeps name, message, code, stack`, async (t) => {
    const pool = open(t)
    for (const [name, want] of [
      ['abortedFetch', ['AbortError', 'This operation was aborted', 20]],
      ['dataClone', ['DataCloneError', '() => {} could not be cloned.', 25]],
    ]) {
      const error = await rejection(pool.run(undefined, { name }))
      assert.deepEqual([error.name, error.message, error.code, error instanceof Error], [...want, true])
      assert.equal(error instanceof DOMException, !isCommon)
      // The error of an aborted fetch has no frames on Node.js 24.
      const frames = name === 'dataClone' || (await rejection(abortedFetch())).stack.includes('\n')
      assert.match(error.stack, isCommon || !frames ? /Error: / : /errors\.mjs|node:internal/)
    }
    const outer = await rejection(pool.run(undefined, { name: 'wrapped' }))
    const [, inner, innermost] = chain(outer)
    assert.deepEqual(
      [outer.message, inner.name, inner.message, inner.kept, innermost.message],
      ['outer', 'DataError', 'inner', [1], 'innermost'],
    )
    assert.ok(innermost instanceof TypeError || isCommon)
    if (!isCommon) assert.equal(outer.list[0], inner)
    const stream = pool.stream(undefined, { name: 'yieldThenAbort' })
    assert.equal((await stream.next()).value, 1)
    const ended = await rejection(stream.next())
    assert.deepEqual([ended.name, ended.message, ended.code], ['AbortError', 'enough', 20])
  })

  test(`${kind}: an error in a circle with its own properties keeps what can be kept`, async (t) => {
    const pool = open(t)
    const error = await rejection(pool.run(undefined, { name: 'circular' }))
    assert.deepEqual([error.name, error.message, error.kept, error.code], ['RangeError', 'circular', 1, 'E_CIRCULAR'])
    if (!isCommon) assert.equal(error.request.error, error)
    const a = await rejection(pool.run(undefined, { name: 'circularCause' }))
    assert.deepEqual([a.message, a.kept, a.cause.name, a.cause.message, a.cause.cause], ['a', 1, 'TypeError', 'b', undefined])
    const mine = Object.assign(new Error('mine'), { kept: 1 })
    mine.self = mine
    const back = await pool.run(mine)
    assert.deepEqual([back.message, back.kept], ['mine', 1])
    if (!isCommon) assert.equal(back.self, back)
  })

  test(`${kind}: an error with more causes than can travel comes with the first of them, and says so`, async (t) => {
    const pool = open(t)
    // As many as can be are whole.
    const whole = chain(await rejection(pool.run(100, { name: 'throwNested' })))
    assert.deepEqual([whole.length, whole[98].i, whole[99].message], [100, 99, 'innermost'])
    for (const n of [MAX + 1, 5000]) {
      const cut = chain(await rejection(pool.run(n, { name: 'throwNested' })))
      assert.deepEqual([cut.length, cut[0].name, cut[0].message, cut[0].i, cut[SHOWN - 1].i], [SHOWN + 1, 'RangeError', 'at 1', 1, SHOWN])
      assert.equal(cut[SHOWN].message, `further causes were left out (max=${SHOWN})`)
    }
    const inside = await rejection(pool.run(5000, { name: 'throwInside' }))
    assert.deepEqual([inside.message, inside.i], ['at 1', 1])
    const stream = pool.stream(5000, { name: 'yieldThenThrow' })
    assert.equal((await stream.next()).value, 1)
    const last = chain(await rejection(stream.next()))
    assert.deepEqual([last.length, last[0].i], [SHOWN + 1, 1])
    // As a value it is whole, or refused.
    assert.equal(chain(await pool.run(nest(100))).length, 100)
    for (const call of [pool.run(nest(5000)), pool.run([nest(5000)], { priority: 1 }), pool.run(5000, { name: 'nest' })]) {
      const error = await rejection(call)
      assert.equal(error.code, 'ERR_OFFLOOP_TOO_LARGE')
      assert.match(error.message, /nested too deeply.*max_depth=128/)
    }
    assert.equal(await pool.run(1), 1)
  })

  if (isCommon) continue

  test(`${kind}: a DOMException travels as a value, too, and inside of others`, async (t) => {
    const pool = open(t)
    const mine = new DOMException('mine', 'TimeoutError')
    assert.deepEqual(await pool.run(mine, { name: 'look' }), [true, true, 'TimeoutError', 'mine', 23, true])
    const error = Object.assign(new Error('beside'), { code: 'E' })
    const value = { list: [mine, error, mine], map: new Map([['k', mine]]), own: Object.assign(new DOMException('own'), { error }) }
    for (let trip = 0, sent = value; trip < 2; trip++) {
      const got = await pool.run(sent)
      const [first, second, third] = got.list
      assert.ok(first instanceof DOMException && first === third && got.map.get('k') === first)
      assert.deepEqual([first.name, first.message, first.code, Object.keys(first)], ['TimeoutError', 'mine', 23, []])
      assert.equal(first.stack, mine.stack)
      assert.equal(inspect(first).split('\n')[0], inspect(mine).split('\n')[0])
      assert.deepEqual([second.message, second.code], ['beside', 'E'])
      assert.equal(got.own.error, second)
      sent = got
    }
  })
}
