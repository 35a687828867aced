// What npm packs works in an empty app. The build from the packed sources takes minutes: OFFLOOP_TEST_SOURCE_BUILD=1.

import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const here = fileURLToPath(new URL('..', import.meta.url))
const run = (cwd, command, ...args) => execFileSync(command, args, { cwd, stdio: 'pipe', encoding: 'utf8', timeout: 60_000 })
// The packs are all there is: a registry that does not answer would hold up an install that asks it for the other platforms.
const install = (app, ...packs) => run(app, 'npm', 'install', '--silent', '--offline', '--ignore-scripts', ...packs)
const host = /^host: (.*)$/m.exec(run(here, 'rustc', '-vV'))[1]
const triple = process.platform === 'linux' ? `linux-${process.arch}-gnu` : `${process.platform}-${process.arch}`

function emptyApp(t) {
  const app = fs.mkdtempSync(path.join(tmpdir(), 'offloop-app-'))
  t.after(() => fs.rmSync(app, { recursive: true, force: true }))
  fs.writeFileSync(path.join(app, 'package.json'), '{ "name": "app", "private": true }')
  return app
}

function packed(directory, pattern) {
  return path.join(
    directory,
    fs.readdirSync(directory).find((name) => pattern.test(name)),
  )
}

test('the packed package works in an empty app', (t) => {
  const packs = emptyApp(t)
  run(here, 'npm', 'pack', '--silent', '--pack-destination', packs)
  assert.ok(!('optionalDependencies' in JSON.parse(fs.readFileSync(path.join(here, 'package.json'), 'utf8'))), 'package.json is as before')
  run(here, process.execPath, 'scripts/pack-platform.mjs', packs)
  const main = packed(packs, /^offloop-\d/)
  const platform = packed(packs, new RegExp(`^offloop-${triple}`))

  const app = emptyApp(t)
  install(app, main, platform)
  const code = "ops.sha256(Buffer.from('x'), { encoding: 'hex' }).then(console.log)"
  for (const [type, source] of [
    ['commonjs', `const { ops } = require('offloop'); ${code}`],
    ['module', `import { ops } from 'offloop'; ${code}`],
  ]) {
    const out = run(app, process.execPath, `--input-type=${type}`, '-e', source)
    assert.equal(out.trim(), '2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881')
  }
  fs.writeFileSync(
    path.join(app, 'twice.mjs'),
    "import { isWorkerThread } from 'offloop/piscina'\nexport default (n) => isWorkerThread && n * 2",
  )
  for (const [type, source] of [
    ['commonjs', "const Piscina = require('offloop/piscina')"],
    ['module', "import Piscina from 'offloop/piscina'"],
  ]) {
    const code = `${source}; new Piscina({ filename: ${JSON.stringify(path.join(app, 'twice.mjs'))} }).run(21).then(console.log)`
    assert.equal(run(app, process.execPath, `--input-type=${type}`, '-e', code).trim(), '42')
  }

  const bare = emptyApp(t)
  install(bare, main)
  const { status, stderr } = spawnSync(process.execPath, ['-e', "require('offloop')"], { cwd: bare, encoding: 'utf8' })
  assert.equal(status, 1)
  assert.match(stderr, new RegExp(`npm install offloop-${triple}@`))
  assert.match(stderr, /npm run build/)
  const wrong = spawnSync(process.execPath, ['-e', "require('offloop')"], {
    cwd: app,
    encoding: 'utf8',
    env: { ...process.env, OFFLOOP_NATIVE_PATH: '/nowhere.node' },
  })
  assert.match(wrong.stderr, /OFFLOOP_NATIVE_PATH does not load \(path=\/nowhere\.node\)/)

  // The sources that it carries are complete as far as cargo can tell without compiling.
  const vendored = path.join(bare, 'node_modules/offloop/vendor')
  run(vendored, 'cargo', 'metadata', '--locked', '--offline', '--format-version=1', '--filter-platform', host)
  if (process.env.OFFLOOP_TEST_SOURCE_BUILD) {
    execFileSync('npm', ['run', '--silent', 'build'], { cwd: path.dirname(vendored), stdio: 'inherit' })
    run(bare, process.execPath, '-e', "require('offloop').ops.sha256(Buffer.from('x'))")
  }
})
