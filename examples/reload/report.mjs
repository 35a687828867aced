// What `offloop bench http --json` has counted, in a few words; exit status 1 if anything failed.
import { json } from 'node:stream/consumers'

const { requests, connections_opened, failed, raced, failures, events, answers } = await json(process.stdin)
const done = events.filter(({ ok }) => ok).length
console.log(`${requests} requests over ${connections_opened} connections, answered by ${answers.values.length} processes`)
console.log(`reloads: ${done} of ${events.length}`)
console.log(`failures: ${failed}`)
for (const [kind, count] of Object.entries(failures)) if (count > 0) console.log(`  ${kind}: ${count}`)
// On a connection that had been idle for so long that any server may close it: not counted as failed.
if (raced > 0) console.log(`raced: ${raced}`)
if (failed > 0 || done < events.length) process.exitCode = 1
