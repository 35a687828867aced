// What takes a core for itself, and what takes its process along.
export function below(limit) {
  let count = 0
  for (let n = 2; n < limit; n++) {
    let d = 2
    while (d * d <= n && n % d !== 0) d++
    if (d * d > n) count++
  }
  return count
}

export function crash() {
  process.kill(process.pid, 'SIGKILL')
}
