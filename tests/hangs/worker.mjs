// A worker whose loop is busy all the time, in pieces of 5 ms, with BUSY; SIGUSR2 blocks it for good.
import '../../bindings-node/lib/register.cjs'
import { currentWorker } from '../../bindings-node/lib/worker.mjs'

process.on('SIGUSR2', () => {
  for (;;);
})
const turn = () => {
  const until = performance.now() + 5
  while (performance.now() < until);
  setImmediate(turn)
}
if (process.env.BUSY) turn()
currentWorker().ready()
setInterval(() => {}, 1e6)
