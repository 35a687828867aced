// A process that logs to the collector: writer.mjs NAME LINES.
import { RingBuffer } from 'offloop'

const [name, lines] = process.argv.slice(2)
const log = RingBuffer.attach(name).producer()
// push() waits while the collector is behind, so a burst costs time and no memory.
for (let n = 0; n < Number(lines); n++) await log.push(Buffer.from(`node ${n} answered in ${(n * 7919) % 1000} us\n`))
log.close()
