const server = require('node:http')
  .createServer()
  .listen(Number(process.env.PORT), () => process.send(process.argv.slice(2)))
process.on('disconnect', () => process.exitCode ?? server.unref())
