import Piscina = require('offloop/piscina')

const pool: Piscina<number, string> = new Piscina({ filename: 'w.cjs', taskQueue: new Piscina.ArrayTaskQueue() })
const options: Piscina.Options = { idleTimeout: 5 }
const result: Promise<string> = pool.runTask(1, [new ArrayBuffer(8)], 'w.cjs', AbortSignal.timeout(5))
void [result, options, new Piscina.Piscina(), Piscina.queueOptionsSymbol]
