// Templates in JavaScript, for whoever calls them: runs in processes of its own.
const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`)
const html = (strings, ...values) =>
  strings.reduce((out, part, i) => out + (Array.isArray(values[i - 1]) ? values[i - 1].join('') : escaped(values[i - 1])) + part)

export const item = ({ name, price }) => html`<li>${name}: ${price.toFixed(2)}</li>`

export const catalogue = ({ title, items }) => html`<!doctype html><title>${title}</title><ul>${items.map(item)}</ul>\n`
