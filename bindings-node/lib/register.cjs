'use strict'
// `offloop/register`: what a Cluster loads before a worker's script. In any other process it does nothing.

require('./member.cjs').enter()
