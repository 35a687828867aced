// One implementation for both module systems, so that classes are the same in both.
import offloop from './index.cjs'

export const {
  ThreadPool,
  WorkerPool,
  ProcessPool,
  move,
  ops,
  defaultPool,
  TransferBuffer,
  revokeToken,
  RingBuffer,
  Producer,
  Consumer,
  Delivery,
  Channel,
  Cluster,
  Counter,
  RateLimiter,
  OffloopError,
  metrics,
} = offloop
