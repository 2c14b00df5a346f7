// Looks names up as Node does: `stub.mjs lookup|resolve4 TIMES NAME ...` prints a line for each lookup.
// `lookup` is libc's, `resolve4` c-ares'.
import dns from 'node:dns/promises';

const [how, ...asked] = process.argv.slice(2);
const ask = {
  lookup: async (name) => (await dns.lookup(name, { all: true, order: 'verbatim' })).map((found) => found.address),
  resolve4: (name) => dns.resolve4(name),
}[how];

for (let i = 0; i + 1 < asked.length; i += 2) {
  for (let times = Number(asked[i]); times > 0; times--) {
    try {
      console.log((await ask(asked[i + 1])).join(' '));
    } catch (error) {
      console.log(error.code === 'ENOTFOUND' ? 'missing' : `failed: ${error.code}`);
    }
  }
}
