// What workers of a cluster count, and let through, together.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Cluster, Counter, RateLimiter } from '../lib/index.mjs'
import { ask, open, portOf } from './servers.mjs'
import { until } from './support.mjs'

const INVALID = 'ERR_OFFLOOP_INVALID'

test('a counter counts for all who have its name', () => {
  const [one, two] = [new Counter('one'), new Counter('one')]
  assert.equal(one.add(), 1)
  assert.equal(two.add(-3), -2)
  assert.equal(one.value, -2)
  assert.equal(two.set(Number.MAX_SAFE_INTEGER), -2)
  assert.equal(one.value, Number.MAX_SAFE_INTEGER)
  assert.equal(new Counter('another').value, 0)
})

test('a bucket empties, comes back, and says when', async () => {
  const limiter = new RateLimiter('waits', { rate: 100, burst: 2 })
  assert.deepEqual(limiter.take('a', 0), { allowed: true, remaining: 2, retryAfter: 0 })
  assert.deepEqual(limiter.take('a', 2), { allowed: true, remaining: 0, retryAfter: 0 })
  assert.equal(limiter.take('b').remaining, 1)
  const { retryAfter } = new RateLimiter('slow', { rate: 0.5 }).take() && new RateLimiter('slow', { rate: 0.5 }).take()
  assert.ok(retryAfter > 1000 && retryAfter <= 2000, retryAfter)
  await until(() => limiter.take('a', 2).allowed)
  assert.equal(new RateLimiter('a second', { rate: 2.5 }).take('', 0).remaining, 3, 'the tokens of one second, rounded up')
})

test('all workers count and let through together, and what they have counted outlives them', async (t) => {
  const cluster = await open(t, { exec: new URL('./clusters/counts.mjs', import.meta.url) })
  const seen = new Set()
  let [allowed, asked] = [0, 0]
  while (seen.size < 2 || asked < 20) {
    const [body, headers] = await ask(portOf(cluster))
    asked++
    seen.add(body)
    if (headers['retry-after'] === '0') allowed++
    else assert.equal(headers['x-remaining'], '0')
  }
  assert.equal(allowed, 10)
  const [, headers] = await ask(portOf(cluster), { headers: { 'x-key': 'another' } })
  assert.equal(headers['x-remaining'], '9')
  const hits = new Counter('hits', { cluster })
  assert.equal(hits.value, asked + 1)
  const few = new RateLimiter('few', { rate: 1e-6, burst: 10, cluster })
  assert.equal(few.take().allowed, false)
  assert.equal(few.take('another').remaining, 8)
  await cluster.reload()
  await ask(portOf(cluster))
  assert.equal(hits.value, asked + 2)
  assert.equal(new Counter('hits').value, 0, 'this process has its own')
  // Another limit comes with another version.
  await cluster.reload({ env: { RATE: 2e-6 } })
  assert.equal((await ask(portOf(cluster), { headers: { 'x-key': 'another' } }))[1]['x-remaining'], '9')
  const refused = { code: INVALID, message: /^invalid: limiter has another limit/ }
  assert.throws(() => new RateLimiter('few', { rate: 1e-6, burst: 10, cluster }), refused)
})

test('names, limits and amounts that cannot be are refused', async () => {
  const named =
    (code, ...parts) =>
    (error) =>
      error.code === code && parts.every((part) => error.message.includes(part))
  const bad = (make, ...parts) => assert.throws(make, named(INVALID, ...parts))
  bad(() => new Counter(''), 'name')
  bad(() => new Counter(7), 'name', '7')
  bad(() => new Counter('x'.repeat(129)), '129', 'max=128')
  bad(() => new Counter('x\n'), 'control')
  bad(() => new Counter('x', { shared: true }), 'shared')
  bad(() => new Counter('x', { cluster: {} }), 'cluster')
  bad(() => new Counter('x').add(0.5), '0.5')
  bad(() => new Counter('x').set(2 ** 53), String(2 ** 53))
  bad(() => new RateLimiter('x'), 'rate')
  bad(() => new RateLimiter('x', { rate: 0 }), 'option=rate', 'value=0')
  bad(() => new RateLimiter('x', { rate: Number.NaN }), 'option=rate')
  bad(() => new RateLimiter('x', { rate: 1, burst: 0 }), 'option=burst', 'min=1')
  bad(() => new RateLimiter('x', { rate: 1, burst: 2 ** 40 }), 'option=burst', 'max=1048576')
  bad(() => new RateLimiter('x', { rate: 1, keys: 1.5 }), 'keys', '1.5')
  bad(() => new RateLimiter('x', { rate: 1, per: 1 }), 'per')
  const limiter = new RateLimiter('checked', { rate: 1, burst: 5 })
  bad(() => new RateLimiter('checked', { rate: 2, burst: 5 }), 'rate 1 ', 'rate 2 ')
  bad(() => limiter.take('', 6), 'cost=6', 'burst=5')
  bad(() => limiter.take('', -1), 'cost', '-1')
  bad(() => limiter.take(5), 'key', '5')
  const cluster = new Cluster({ exec: new URL('./clusters/counts.mjs', import.meta.url) })
  assert.throws(() => new Counter('x', { cluster }), { code: 'ERR_OFFLOOP_CLOSED' })
  for (let i = 0; i < 256; i++) {
    try {
      new Counter(`name ${i}`)
    } catch (error) {
      assert.ok(named('ERR_OFFLOOP_FULL', 'max=256')(error), error)
      assert.ok(i > 200)
      return
    }
  }
  assert.fail('there is no end of names')
})
