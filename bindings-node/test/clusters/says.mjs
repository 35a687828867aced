// Prints what it is told to: `out` and `err` so many `times`, `#` in them by numbers; then makes a file, or ends.
import { writeFileSync } from 'node:fs'
import { currentWorker } from '../../lib/worker.mjs'

const worker = currentWorker()
worker.on('message', ({ out = '', err = '', times = 1, file, end }) => {
  for (let i = 0; i < times; i++) {
    if (out !== '') process.stdout.write(typeof out === 'string' ? out.replace('#', i) : out)
    if (err !== '') process.stderr.write(err.replace('#', i))
  }
  if (file !== undefined) writeFileSync(file, '')
  if (end === 'exit') process.exit(3)
  if (end === 'kill') process.kill(process.pid, 'SIGKILL')
})
setInterval(() => {}, 1000)
worker.ready()
