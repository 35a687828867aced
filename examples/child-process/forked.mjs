// The other side of `fork`: a protocol of one's own. A pool needs no such file.
import * as functions from './primes.mjs'

process.on('message', ({ name, args }) => process.send(functions[name](...args)))
