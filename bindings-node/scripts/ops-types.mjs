// lib/ops.d.ts from the core's op table.
//
//   node scripts/ops-types.mjs          compares; exit 1 on a difference
//   node scripts/ops-types.mjs --write  rewrites (also with OFFLOOP_BLESS=1)

import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'

const native = createRequire(import.meta.url)('../lib/native.cjs')
const file = fileURLToPath(new URL('../lib/ops.d.ts', import.meta.url))

const camel = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase())
const pascal = (name) =>
  name
    .split(/[._]/)
    .map((part) => part[0].toUpperCase() + part.slice(1))
    .join('')
const comment = (lines, indent) =>
  lines.length === 1
    ? `${indent}/** ${lines[0]} */\n`
    : `${indent}/**\n${lines.map((line) => `${`${indent} * ${line}`.trimEnd()}\n`).join('')}${indent} */\n`
const safe = (text) => text.replaceAll('*/', '*\\/')

function paramsType(op) {
  if (op.params.length === 0) return null
  const fields = op.params.map((p) => {
    const notes = [p.required ? 'required' : p.default === null ? 'no default' : `default ${p.default}`]
    if (p.limits) notes.push(`${p.limits[0]} to ${p.limits[1]}`)
    return `${comment([`${safe(p.about)} (${notes.join('; ')})`], '  ')}  ${p.name}${p.required ? '' : '?'}: ${p.type}${p.required ? '' : ' | undefined'}\n`
  })
  return `${comment([`Options of \`${op.name}\`.`], '')}export interface ${pascal(op.name)}Params {\n${fields.join('')}}\n`
}

/** One signature, or one per kind of result. */
function signatures(op) {
  const required = op.params.some((p) => p.required)
  const data = []
  if (op.maxInputs > 0) {
    const type = op.maxInputs > 1 ? (op.minInputs > 1 ? 'Bytes[]' : 'Bytes | Bytes[]') : 'Bytes'
    data.push(op.minInputs === 0 && !required ? `data?: ${type}` : op.minInputs === 0 ? `data: ${type} | undefined` : `data: ${type}`)
  }
  const type = op.params.length > 0 ? `${pascal(op.name)}Params` : 'Record<string, never>'
  const tail = ['options?: RunOptions']
  const form = (params, returns) => `(${[...data, params, ...tail].join(', ')}): Promise<${returns}>`
  const optional = required ? 'params' : 'params?'
  if (op.returns !== 'Encoded') return [form(`${optional}: ${type}`, op.returns)]
  return [
    form(`params: ${type} & { encoding: TextEncoding }`, 'string'),
    form(`${optional}: ${type} & { encoding?: 'bytes' | undefined }`, 'Uint8Array'),
    // Options that are known when it runs.
    form(`params: ${type}`, 'Encoded'),
  ]
}

export function generate(table = native.opTable()) {
  let out = '// Made from the op table of the core by scripts/ops-types.mjs. Do not edit: npm run bless.\n\n'
  out += "import type { Bytes, RunOptions } from './index.js'\n"
  const encoding = table.find((op) => op.returns === 'Encoded')?.params.find((p) => p.name === 'encoding')
  if (encoding)
    out += `\n/** Words of option \`encoding\` that ask for text instead of bytes. */\nexport type TextEncoding = Exclude<${encoding.type}, 'bytes'>\n`
  out += '\n/** Bytes, or text when option `encoding` asks for it. */\nexport type Encoded = Uint8Array | string\n'
  const families = new Map()
  for (const op of table) {
    const params = paramsType(op)
    if (params) out += `\n${params}`
    const at = op.name.indexOf('.')
    const family = at < 0 ? '' : camel(op.name.slice(0, at))
    if (!families.has(family)) families.set(family, [])
    families.get(family).push({ ...op, member: camel(at < 0 ? op.name : op.name.slice(at + 1)) })
  }
  const member = (op, indent) => {
    const lines = [safe(op.about)]
    if (op.uncancellable) lines.push('', `It does not see cancellation ${op.uncancellable}.`)
    const [first, ...others] = signatures(op)
    return `${comment(lines, indent)}${[first, ...others].map((one) => `${indent}${op.member}${one}\n`).join('')}`
  }
  out += '\n/** One typed function per native op, on the default pool. */\nexport interface Ops {\n'
  for (const op of families.get('') ?? []) out += member(op, '  ')
  for (const [family, list] of families) {
    if (family === '') continue
    out += `  ${family}: {\n${list.map((op) => member(op, '    ')).join('')}  }\n`
  }
  out += '}\n'
  out += '\n/** What each op returns, by name, for `pool.run`. */\nexport interface OpResults {\n'
  for (const op of table) out += `  '${op.name}': ${op.returns}\n`
  out += '}\n'
  out += '\n/** Options of each op, by name, for `pool.run`. */\nexport interface OpParams {\n'
  for (const op of table) out += `  '${op.name}': ${op.params.length > 0 ? `${pascal(op.name)}Params` : 'Record<string, never>'}\n`
  return `${out}}\n`
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const fresh = generate()
  if (process.argv.includes('--write') || process.env.OFFLOOP_BLESS === '1') {
    writeFileSync(file, fresh)
  } else if (readFileSync(file, 'utf8') !== fresh) {
    console.error('lib/ops.d.ts is not what the op table says; run: npm run bless')
    process.exit(1)
  }
}
