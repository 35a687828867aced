// What the tests of clusters of servers need.
import http from 'node:http'
import https from 'node:https'
import { fileURLToPath } from 'node:url'
import { Cluster } from '../lib/index.mjs'

export const LOCAL = [0, '127.0.0.1']

export const file = (name) => fileURLToPath(new URL(`clusters/${name}`, import.meta.url))

/** A cluster of two servers that is ready, and ends with its test. */
export async function open(t, options = {}, listen = LOCAL) {
  const { env, ...rest } = options
  const cluster = new Cluster({
    exec: file('server.mjs'),
    workers: 2,
    minReady: 0,
    ...rest,
    env: { LISTEN: JSON.stringify(listen), ...env },
  })
  t.after(() => cluster.stop({ grace: 0 }))
  await cluster.start()
  return cluster
}

export const portOf = (cluster, index = 0) => Number(cluster.addresses[index].match(/:(\d+)$/)[1])

/** One request, by TLS where `options` has a `ca`; `[body, headers]`. Nothing is sent twice. */
export function ask(port, options = {}) {
  return new Promise((resolve, reject) => {
    const { request: send } = options.ca === undefined ? http : https
    const request = send({ host: '127.0.0.1', port, agent: false, ...options }, async (response) => {
      try {
        let body = ''
        for await (const chunk of response) body += chunk
        resolve([body, response.headers])
      } catch (error) {
        reject(error)
      }
    })
    request.on('error', reject)
    request.end(options.body)
  })
}
