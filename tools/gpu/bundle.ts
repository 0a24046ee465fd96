// Packs what `pnpm test:gpu` and `pnpm bench:gpu` need into one file that runs without a registry, a compiler or Node: `pnpm bundle:gpu
// [--arch sm_90a] [--output target/llamavid-gpu.tar.xz]`, behind `pnpm build` and `pnpm build:cuda`. Where it is unpacked:
//
//     python3 -m tarfile -e llamavid-gpu.tar.xz && cd llamavid-gpu && sh gpu.sh test && sh gpu.sh bench
import { execFileSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { platforms, target } from '../cuda/platforms.ts';

const root = join(import.meta.dirname, '../..');
const MOST = 63 << 20;

const { values } = parseArgs({
  options: {
    arch: { type: 'string', default: 'sm_90a' },
    output: { type: 'string', default: join(root, 'target/llamavid-gpu.tar.xz') },
  },
});
const platform = platforms[values.arch];
if (platform === undefined) {
  console.error(`--arch ${values.arch} is none of ${Object.keys(platforms).join(', ')}`);
  process.exit(2);
}

/** Every part, from the repository's root, and where it lies in the bundle. */
const parts: [from: string, to?: string][] = [
  // Like beside like: what the addon and the program have in common is then packed once.
  [`packages/native/npm/${platform}`],
  ...['llamavid-parity', 'kernel_parity'].map((name): [string, string] => [
    `target/cuda-${values.arch}/${target}/release/${name}`,
    `programs/${name}`,
  ]),
  [`target/${target}/release/llamavid-scale`, 'programs/llamavid-scale'],
  ...['errors', 'native', 'vision', 'tokens', 'llm'].flatMap((name): [string][] => [
    [`packages/${name}/package.json`],
    [`packages/${name}/dist`],
  ]),
  ['packages/tiny/model'],
  ['fixtures/oracle'],
  ['fixtures/random-model'],
  ['tools/gpu'],
  ['tools/bench/peers'],
  ['docs/benchmarks/gpu.md'],
  ['docs/benchmarks/gpu.json'],
];
/** What runs on no graphics processor. */
const left = ['fixtures/oracle/preprocess', 'tools/gpu/bundle.ts', 'packages/native/dist/binding.d.ts'];

const missing = parts.filter(([from]) => !existsSync(join(root, from)));
// It computes on the CPU too, so the other one stays behind.
const addon = `packages/native/npm/${platform}/llamavid.${platform}.node`;
if (!existsSync(join(root, addon))) missing.push([addon]);
if (missing.length > 0) {
  console.error(`error: not built: ${missing.map(([from]) => from).join(', ')}`);
  console.error(`hint: pnpm build && pnpm test:rust && pnpm build:cuda --arch ${values.arch}`);
  process.exit(1);
}

const work = mkdtempSync(join(tmpdir(), 'llamavid-bundle-'));
try {
  const bundle = join(work, 'llamavid-gpu');
  for (const [from, to = from] of parts) {
    const place = join(bundle, to);
    mkdirSync(dirname(place), { recursive: true });
    const filter = (path: string) => !left.some((one) => path === join(root, one));
    cpSync(join(root, from), place, { recursive: true, filter });
  }
  // Packages find each other as installed ones do.
  const scope = join(bundle, 'node_modules/@llamavid');
  mkdirSync(scope, { recursive: true });
  for (const name of ['errors', 'native', 'vision', 'tokens', 'llm']) {
    symlinkSync(`../../packages/${name}`, join(scope, name));
  }
  cpSync(process.execPath, join(bundle, 'programs/node'));
  execFileSync(
    'strip',
    ['node', 'llamavid-scale'].map((name) => join(bundle, 'programs', name)),
  );
  writeFileSync(join(bundle, 'package.json'), '{ "private": true, "type": "module" }\n');
  const commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root, encoding: 'utf8' });
  writeFileSync(
    join(bundle, 'gpu.sh'),
    `#!/bin/sh
# sh gpu.sh test|bench [option ...]: see tools/gpu.
name=$1
shift
cd "$(dirname "$0")" || exit
LLAMAVID_NATIVE_PATH="$PWD/${addon}" LLAMAVID_COMMIT=${commit.trim()} exec programs/node "tools/gpu/$name.ts" "$@"
`,
  );
  const tar = join(work, 'bundle.tar');
  const ordered = [
    'packages',
    'programs',
    'fixtures',
    'tools',
    'docs',
    'node_modules',
    'package.json',
    'gpu.sh',
  ];
  const names = ordered.map((name) => `llamavid-gpu/${name}`);
  execFileSync('tar', ['-cf', tar, '--owner=0', '--group=0', '-C', work, ...names]);
  console.error('packing; this takes some minutes');
  // Larger than all of it, so that what two files have in common is found.
  const script = `import lzma, shutil, sys
filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 256 << 20}]
with open(sys.argv[1], "rb") as tar, lzma.open(sys.argv[2], "wb", filters=filters) as packed:
    shutil.copyfileobj(tar, packed, 1 << 20)`;
  const unfinished = `${values.output}.part`;
  execFileSync('python3', ['-c', script, tar, unfinished], { stdio: 'inherit' });
  renameSync(unfinished, values.output);
} finally {
  rmSync(work, { recursive: true, force: true });
}
const { size } = statSync(values.output);
console.log(`${values.output}: ${(size / 2 ** 20).toFixed(1)} MiB`);
if (size > MOST) {
  console.error(`error: more than ${MOST >> 20} MiB`);
  process.exit(1);
}
