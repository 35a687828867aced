// A server that does not come back, in the way that the path names.
import { execSync } from 'node:child_process'
import { pbkdf2Sync } from 'node:crypto'
import http from 'node:http'

/** Until the file is there. */
const held = () => execSync('while [ ! -e "$HOLD" ]; do sleep 0.05; done')

const ways = {
  loop: function spin() {
    for (;;);
  },
  wait: function waits() {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
  },
  regexp: function matches() {
    ;/^(a+)+$/.test(`${'a'.repeat(60)}b`)
  },
  child: function runs() {
    execSync('sleep 10')
  },
  native: function hashes() {
    pbkdf2Sync('', '', 2 ** 31 - 1, 64, 'sha512')
  },
  pause: held,
  leave() {
    held()
    process.exit(7)
  },
  deep: function deeper(n = 0) {
    if (n < 200) deeper(n + 1)
    for (;;);
  },
}

http
  .createServer((request, response) => {
    ways[request.url.slice(1)]?.()
    response.end('back')
  })
  .listen(0, '127.0.0.1')
