// Runs in a process of the pool.
export function below(limit) {
  if (!Number.isSafeInteger(limit) || limit < 0 || limit > 100_000_000) throw new RangeError('a whole number up to 100,000,000')
  const composite = new Uint8Array(limit)
  let primes = 0
  for (let n = 2; n < limit; n++) {
    if (composite[n]) continue
    primes++
    for (let multiple = n * n; multiple < limit; multiple += n) composite[multiple] = 1
  }
  return primes
}
