// A user's function: primes below n, the slow way.
export function primes(n) {
  let count = 0
  for (let i = 2; i < n; i++) {
    let d = 2
    while (d * d <= i && i % d !== 0) d++
    if (d * d > i) count++
  }
  return count
}
