// Builds the native library: cargo, then a copy beside package.json. No dependency but Rust.
//
//   node build.mjs               always
//   node build.mjs --if-missing  only when neither a built library nor the platform package is there (npm's install script)

import { execFileSync } from 'node:child_process'
import { copyFileSync, existsSync, renameSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const triple = process.platform === 'linux' ? `linux-${process.arch}-gnu` : `${process.platform}-${process.arch}`
const library = { darwin: 'liboffloop_node.dylib', win32: 'offloop_node.dll' }[process.platform] ?? 'liboffloop_node.so'
const out = join(here, `offloop.${triple}.node`)
// The command, which bin/offloop.cjs becomes.
const command = join(here, `offloop.${triple}`)

function installed() {
  if (existsSync(out)) return true
  try {
    createRequire(import.meta.url).resolve(`offloop-${triple}`)
    return true
  } catch {
    return false
  }
}

// A packed package carries the sources of the core in vendor/; a checkout has them beside it.
const vendored = join(here, 'vendor')
const workspace = existsSync(vendored) ? vendored : dirname(here)

if (process.argv.includes('--if-missing') && (installed() || (workspace !== vendored && process.env.OFFLOOP_SKIP_BUILD))) {
  process.exit(0)
}
const target = process.env.CARGO_TARGET_DIR ?? join(workspace, 'target')
// `--built`: a build of the whole workspace has made the library already.
if (!process.argv.includes('--built')) {
  try {
    execFileSync('cargo', ['build', '--release', '--locked', '-p', 'offloop-node', '-p', 'offloop', '--features', 'offloop/cli'], {
      cwd: workspace,
      stdio: 'inherit',
      env: { ...process.env, CARGO_TARGET_DIR: target },
    })
  } catch (error) {
    const missing = error.code === 'ENOENT'
    console.error(
      missing
        ? 'offloop: cargo is not installed; get Rust from https://rustup.rs, or install the prebuilt package'
        : 'offloop: cargo build did not succeed',
    )
    process.exit(1)
  }
}
// A running process may have the old file mapped: replace it, do not overwrite it.
for (const [from, to] of [
  [library, out],
  ['offloop', command],
]) {
  copyFileSync(join(target, 'release', from), `${to}.new`)
  renameSync(`${to}.new`, to)
}
console.log(`offloop: built ${out}`)
