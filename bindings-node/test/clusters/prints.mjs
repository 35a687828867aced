// Prints lines, some on its error output, and is ready.
import { currentWorker } from '../../lib/worker.mjs'

for (let i = 1; i <= 50; i++) console[i % 10 === 0 ? 'error' : 'log'](`line ${i}`)
setInterval(() => {}, 1000)
currentWorker().ready()
