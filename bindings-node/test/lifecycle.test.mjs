import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { ThreadPool } from '../lib/index.mjs'
import { entryUrl, script } from './support.mjs'

const ok = ({ code, signal, err }) => assert.deepEqual([code, signal, err], [0, null, ''])

test('an idle pool lets the process exit, pending tasks keep it', async () => {
  ok(
    await script(`
    const { ThreadPool, ops } = await import(offloopUrl)
    const pool = new ThreadPool({ minWorkers: 2, maxWorkers: 2 })
    await pool.run('noop', new Uint8Array(8))
    await ops.noop(new Uint8Array(8))
  `),
  )
  const { code, out } = await script(`
    const { ThreadPool } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 1 })
    pool.run('noop', undefined, { sleepMs: 50 }).then(() => console.log('settled'))
  `)
  assert.deepEqual([code, out], [0, 'settled\n'])
  const closing = await script(`
    const { ThreadPool } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 1 })
    pool.run('noop', undefined, { sleepMs: 50 }).then(() => console.log('settled'))
    pool.close().then(() => console.log('closed'))
  `)
  assert.deepEqual([closing.code, closing.out.split('\n').sort().join(' ')], [0, ' closed settled'])
})

test('process.exit with work in flight keeps its code', async () => {
  for (const params of ['{ sleepMs: 600000 }', '{ sleepMs: 600000, ignoreCancel: true }', '{}']) {
    const { code, signal, err } = await script(
      `
      const { ThreadPool } = await import(offloopUrl)
      const pool = new ThreadPool({ maxWorkers: 4 })
      const wait = new AbortController()
      for (let i = 0; i < 500; i++) {
        pool.run('noop', new Uint8Array(100_000), ${params}, i & 1 ? { signal: wait.signal } : undefined)
        pool.run('noop', new Uint8Array(100))
      }
      pool.run('noop', new Uint8Array(64 << 20))
      await pool.run('noop', new Uint8Array(8), undefined, { priority: 127, timeout: 1 }).catch(() => {})
      setImmediate(() => process.exit(7))
    `.replace('await pool.run', 'pool.run'),
    )
    assert.deepEqual([code, signal, err], [7, null, ''])
  }
})

test('an uncaught exception and SIGTERM end the process as they do without offloop', async () => {
  const thrown = await script(`
    const { ThreadPool } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 1 })
    pool.run('noop', new Uint8Array(8), { sleepMs: 600000 })
    throw new Error('on purpose')
  `)
  assert.equal(thrown.code, 1)
  assert.match(thrown.err, /on purpose/)
  const killed = await script(`
    const { ThreadPool } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 1 })
    pool.run('noop', new Uint8Array(8), { sleepMs: 600000 })
    process.kill(process.pid, 'SIGTERM')
    setInterval(() => {}, 1000)
  `)
  assert.equal(killed.signal, 'SIGTERM')
})

test('a signal whose methods throw leaves nothing that keeps the process', async () => {
  const { code, out, err } = await script(`
    const { ThreadPool } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 1 })
    const uncaught = []
    process.on('uncaughtException', (error) => uncaught.push(error.message))
    for (const input of [new Uint8Array(8), new Uint8Array(4 << 20)]) {
      for (const nth of [1, 2]) {
        let calls = 0
        const signal = { aborted: false, addEventListener() { if (++calls === nth) throw new Error('add') }, removeEventListener() {} }
        await pool.run('noop', input, undefined, { signal }).catch(() => {})
      }
    }
    const signal = { aborted: false, addEventListener() {}, removeEventListener() { throw new Error('remove') } }
    const tasks = Array.from({ length: 3 }, () => pool.run('noop', new Uint8Array(8), undefined, { signal }))
    await Promise.all([...tasks, pool.run('noop', new Uint8Array(4 << 20))])
    process.on('exit', () => console.log(uncaught.join(' ')))
  `)
  assert.deepEqual([code, err], [0, ''])
  // One for each time that the last task of the signal ended.
  assert.match(out, /^remove( remove)*\n$/)
})

test('a handled rejection is not reported, an unhandled one is', async () => {
  ok(
    await script(`
    const { ThreadPool } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 1 })
    for (const call of [pool.run('nope'), pool.run('noop', 1), pool.runMany('noop', [1]), pool.run('noop', undefined, { panic: 3 })]) {
      await call.catch(() => {})
    }
    const abort = new AbortController()
    const call = pool.run('noop', new Uint8Array(8 << 20), undefined, { signal: abort.signal })
    abort.abort()
    await call.catch(() => {})
    await pool.close()
  `),
  )
  const { code, err } = await script(`
    const { ThreadPool } = await import(offloopUrl)
    new ThreadPool({ maxWorkers: 1 }).run('nope')
  `)
  assert.equal(code, 1)
  assert.match(err, /ERR_OFFLOOP_NOT_FOUND/)
})

test('several worker_threads at once, each with pools of its own and the shared default pool', async () => {
  const code = `import { parentPort, workerData } from 'node:worker_threads'
    import assert from 'node:assert/strict'
    import { ThreadPool, ops } from ${JSON.stringify(entryUrl)}
    const pool = new ThreadPool({ maxWorkers: 2 })
    for (let round = 0; round < 20; round++) {
      const inputs = Array.from({ length: 200 }, (_, i) => new Uint8Array(1 + (i * 7) % 3000).fill(workerData + i))
      const results = await Promise.all(inputs.map((input, i) => (i & 1 ? pool.run('noop', input) : ops.noop(input))))
      results.forEach((result, i) => assert.deepEqual(result, inputs[i]))
    }
    parentPort.postMessage('done')`
  const workers = Array.from(
    { length: 4 },
    (_, i) => new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`), { workerData: i * 50 }),
  )
  await Promise.all(
    workers.map(async (worker) => {
      assert.deepEqual(await Promise.all([once(worker, 'message'), once(worker, 'exit')]), [['done'], [0]])
    }),
  )
})

test('a worker_thread can be terminated with work in flight', async () => {
  const code = `import { parentPort } from 'node:worker_threads'
    import { ThreadPool, ops } from ${JSON.stringify(entryUrl)}
    const pool = new ThreadPool({ maxWorkers: 2 })
    const { signal } = new AbortController()
    for (let i = 0; i < 50; i++) {
      pool.run('noop', new Uint8Array(10_000), { sleepMs: i % 5 }, i & 1 ? { signal } : undefined)
      ops.noop(new Uint8Array(10_000))
    }
    pool.run('noop', new Uint8Array(16 << 20))
    pool.run('noop', new Uint8Array(8), { sleepMs: 600000 }, { signal })
    const again = () => { ops.noop(new Uint8Array(100)).then(again) }
    for (let i = 0; i < 50; i++) again()
    parentPort.postMessage('started')`
  for (let i = 0; i < 20; i++) {
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`))
    await once(worker, 'message')
    await worker.terminate()
  }
  const pool = new ThreadPool({ maxWorkers: 1 })
  await pool.run('noop', new Uint8Array(8))
  await pool.close()
})

test('200 environments come and go', async () => {
  const { code, err } = await script(`
    import fs from 'node:fs'
    import assert from 'node:assert/strict'
    import { once } from 'node:events'
    import { Worker } from 'node:worker_threads'
    const source = \`
      import { ThreadPool, ops } from \${JSON.stringify(offloopUrl)}
      const pool = new ThreadPool({ maxWorkers: 1 })
      await Promise.all([pool.run('noop', new Uint8Array(5000)), ops.noop(new Uint8Array(10))])
      pool.run('noop', new Uint8Array(8), { sleepMs: 1 })
      process.exit(0)\`
    const url = new URL('data:text/javascript,' + encodeURIComponent(source))
    const count = (what) => fs.readdirSync('/proc/self/' + what).length
    const cycle = async () => {
      const [exit] = await once(new Worker(url), 'exit')
      assert.equal(exit, 0)
    }
    for (let i = 0; i < 20; i++) await cycle()
    const [fds, threads] = [count('fd'), count('task')]
    for (let i = 0; i < 45; i++) await Promise.all([cycle(), cycle(), cycle(), cycle()])
    while (count('fd') > fds + 2 || count('task') > threads + 4) await new Promise(setImmediate)
  `)
  assert.equal(code, 0, err)
})

test('1,000 create, use and close cycles leave threads, descriptors and memory where they were', async () => {
  const { code, err } = await script(
    `
    import fs from 'node:fs'
    import assert from 'node:assert/strict'
    const { ThreadPool } = await import(offloopUrl)
    const count = (what) => fs.readdirSync('/proc/self/' + what).length
    const cycle = async (i) => {
      const pool = new ThreadPool({ maxWorkers: 2 })
      await Promise.all([pool.run('noop', new Uint8Array(1000)), pool.run('noop', new Uint8Array(10_000), {})])
      if (i % 3 === 0) await pool.close()
    }
    const settled = async () => {
      globalThis.gc()
      await new Promise(setImmediate)
    }
    for (let i = 0; i < 200; i++) await cycle(i)
    for (let i = 0; i < 20; i++) await settled()
    const before = [count('fd'), process.memoryUsage().rss]
    for (let i = 0; i < 1000; i++) {
      await cycle(i)
      if (i % 50 === 0) await settled()
    }
    // Pools that were dropped without close end with the collection of their handle.
    while (count('task') > 20 || count('fd') > before[0] + 2) await settled()
    const grown = process.memoryUsage().rss - before[1]
    assert.ok(grown < 40 << 20, 'resident set grew by ' + grown)
  `,
    { args: ['--expose-gc'] },
  )
  assert.equal(code, 0, err)
})

test('a second evaluation of the package over one native library shares the first', async () => {
  const { code, out, err } = await script(`
    import { createRequire } from 'node:module'
    import { fileURLToPath } from 'node:url'
    const require = createRequire(offloopUrl)
    const entry = fileURLToPath(new URL('./index.cjs', offloopUrl))
    const first = require(entry)
    const pool = new first.ThreadPool({ maxWorkers: 1 })
    const pending = pool.run('noop', new Uint8Array(8), { sleepMs: 20 })
    for (const file of Object.keys(require.cache)) if (!file.endsWith('.node')) delete require.cache[file]
    const second = require(entry)
    const other = new second.ThreadPool({ maxWorkers: 1 })
    const results = await Promise.all([pending, other.run('noop', new Uint8Array(8)), pool.run('noop', new Uint8Array(8))])
    console.log(results.length, pool instanceof second.ThreadPool)
  `)
  assert.deepEqual([code, out, err], [0, '3 true\n', ''])
})
