// npm's prepack and postpack: what a package needs beyond a checkout.
//
// * vendor/: sources of the core and of this crate, with a trimmed Cargo.lock, so that `node build.mjs` works anywhere
// * optionalDependencies on the prebuilt platform packages; not in the committed file, because `npm ci` refuses a lock file
//   that lacks a package which is not published yet
//
//   node scripts/vendor.mjs          before packing
//   node scripts/vendor.mjs --clean  after it

import { execFileSync } from 'node:child_process'
import { cpSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(dirname(fileURLToPath(import.meta.url)))
const root = dirname(here)
const vendor = join(here, 'vendor')
const manifest = join(here, 'package.json')
const PLATFORMS = ['linux-x64-gnu', 'linux-arm64-gnu']

const licence = join(here, 'LICENSE')

rmSync(vendor, { recursive: true, force: true })
rmSync(licence, { force: true })
const json = JSON.parse(readFileSync(manifest, 'utf8'))
delete json.optionalDependencies

if (!process.argv.includes('--clean')) {
  const skip = (path) => !/\/(target|node_modules)$/.test(path)
  mkdirSync(join(vendor, 'bindings-node'), { recursive: true })
  cpSync(join(root, 'core'), join(vendor, 'core'), { recursive: true, filter: skip })
  cpSync(join(here, 'src'), join(vendor, 'bindings-node/src'), { recursive: true })
  cpSync(join(here, 'Cargo.toml'), join(vendor, 'bindings-node/Cargo.toml'))
  const workspace = readFileSync(join(root, 'Cargo.toml'), 'utf8')
  writeFileSync(join(vendor, 'Cargo.toml'), workspace.replace(/^members = .*$/m, 'members = ["core", "bindings-node"]'))
  cpSync(join(root, 'LICENSE'), licence)
  cpSync(join(root, 'Cargo.lock'), join(vendor, 'Cargo.lock'))
  // Drops what only the other members need and keeps every version, so that `--locked` holds.
  execFileSync('cargo', ['update', '--workspace', '--offline', '--quiet'], { cwd: vendor, stdio: 'inherit' })
  json.optionalDependencies = Object.fromEntries(PLATFORMS.map((platform) => [`offloop-${platform}`, json.version]))
}
// By rename, so that a program that loads the package meanwhile reads a whole file.
writeFileSync(`${manifest}.new`, `${JSON.stringify(json, null, 2)}\n`)
renameSync(`${manifest}.new`, manifest)
