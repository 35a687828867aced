// `npm run pack:platform [directory]`: a tarball with the native library and the command that were built here, needing no install script.

import { execFileSync } from 'node:child_process'
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(dirname(fileURLToPath(import.meta.url)))
const { version, license, repository, engines } = JSON.parse(readFileSync(join(here, 'package.json'), 'utf8'))
const triple = process.platform === 'linux' ? `linux-${process.arch}-gnu` : `${process.platform}-${process.arch}`
const file = `offloop.${triple}.node`
const command = `offloop.${triple}`
const out = resolve(process.argv[2] ?? here)

for (const built of [file, command]) {
  if (existsSync(join(here, built))) continue
  console.error(`${built} is not built; run: npm run build`)
  process.exit(1)
}
const staged = mkdtempSync(join(tmpdir(), 'offloop-pack-'))
try {
  copyFileSync(join(here, file), join(staged, file))
  copyFileSync(join(here, command), join(staged, command))
  chmodSync(join(staged, command), 0o755)
  copyFileSync(join(dirname(here), 'LICENSE'), join(staged, 'LICENSE'))
  // Line tables are for profilers of a checkout; a package ships without them.
  execFileSync('strip', ['--strip-unneeded', join(staged, file), join(staged, command)])
  const manifest = {
    name: `offloop-${triple}`,
    version,
    description: `Native library of offloop for ${triple}`,
    license,
    repository,
    engines,
    os: [process.platform],
    cpu: [process.arch],
    ...(process.platform === 'linux' && { libc: ['glibc'] }),
    main: file,
    files: [file, command],
  }
  writeFileSync(join(staged, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`)
  writeFileSync(
    join(staged, 'README.md'),
    `The native library of [offloop](https://www.npmjs.com/package/offloop) for ${triple}. Install \`offloop\`.\n`,
  )
  mkdirSync(out, { recursive: true })
  execFileSync('npm', ['pack', '--pack-destination', out], { cwd: staged, stdio: 'inherit' })
} finally {
  rmSync(staged, { recursive: true, force: true })
}
