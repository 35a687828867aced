// Runs on worker threads: slow on purpose, and it looks at its signal between steps.
import { pbkdf2Sync } from 'node:crypto'
import { currentTask } from 'offloop/worker'

const STEPS = 15
const ROUNDS = 10_000

export function hash(password, salt) {
  let key = Buffer.from(password)
  for (let step = 0; step < STEPS; step++) {
    currentTask().signal.throwIfAborted()
    key = pbkdf2Sync(key, `${salt}${step}`, ROUNDS, 32, 'sha256')
  }
  return key.toString('hex')
}
