// Says what the kernel lets it have.
import fs from 'node:fs'
import http from 'node:http'
import os from 'node:os'
import { currentWorker } from '../../lib/worker.mjs'

const limits = fs.readFileSync('/proc/self/limits', 'utf8')
const limit = (name) => new RegExp(`^${name} +(\\S+) +(\\S+)`, 'm').exec(limits)[2]
const said = {
  slot: currentWorker().slot,
  nice: os.getPriority(),
  uid: process.getuid(),
  gid: process.getgid(),
  files: limit('Max open files'),
  core: limit('Max core file size'),
  oom: fs.readFileSync('/proc/self/oom_score_adj', 'utf8').trim(),
  cpus: /^Cpus_allowed_list:\s+(\S+)$/m.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1],
}

http.createServer((_, response) => response.setHeader('connection', 'close').end(JSON.stringify(said))).listen(0, '127.0.0.1')
