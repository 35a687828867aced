#!/usr/bin/env node
'use strict'
// The `offloop` command. The core does all of it and writes to the output itself.
process.exitCode = require('../lib/native.cjs').cli(process.argv.slice(2))
