// Runs on worker threads: counts primes, says how far it is, and stops when nobody waits any more.
import { currentTask } from 'offloop/worker'

function isPrime(n) {
  for (let d = 2; d * d <= n; d++) if (n % d === 0) return false
  return n > 1
}

export function primes({ below }) {
  if (!Number.isSafeInteger(below)) throw new TypeError('below is no integer')
  const task = currentTask()
  let count = 0
  for (let n = 0; n < below; n++) {
    if (n % 10_000 === 0) {
      task.signal.throwIfAborted()
      task.progress(n / below)
    }
    if (isPrime(n)) count++
  }
  return count
}
