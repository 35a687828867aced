import type { Cluster } from 'node:cluster'

/** As `node:cluster`; what is not there, and what is meant otherwise: docs/cluster.md. */
declare const cluster: Cluster
export = cluster
