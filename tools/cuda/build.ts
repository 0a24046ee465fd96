// Builds the addon with CUDA: `pnpm build:cuda [--arch sm_90a|sm_89|sm_80]`. Needs no root, no driver and no graphics processor; the
// first build takes some fifteen minutes of two idle cores. It has a target folder of its own, so that other builds stay whole.
import { spawnSync } from 'node:child_process';
import { copyFileSync, renameSync, statSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { platforms, target } from './platforms.ts';
import { cudaEnvironment } from './toolkit.ts';

const root = join(import.meta.dirname, '../..');
const { values } = parseArgs({ options: { arch: { type: 'string', default: 'sm_90a' } } });
const platform = platforms[values.arch];
if (platform === undefined) {
  fail(2, `--arch ${values.arch} is none of ${Object.keys(platforms).join(', ')}`);
}
if (process.platform !== 'linux' || process.arch !== 'x64') {
  fail(1, `addons with CUDA are built on linux-x64, not on ${process.platform}-${process.arch}`);
}

const folder = join(root, `target/cuda-${values.arch}`);
const flags = ['--release', '--locked', '--target', target, '--target-dir', folder];
const features = ['--features', 'llamavid-napi/cuda,llamavid-parity/cuda'];
// The programs hold a device to the reference's records and to definitions: `pnpm test:gpu`.
const programs = ['llamavid-parity', 'kernel_parity'].flatMap((name) => ['--bin', name]);
const wanted = ['--workspace', ...features, '--lib', ...programs];
const done = spawnSync('cargo', ['build', ...flags, ...wanted], {
  cwd: root,
  stdio: 'inherit',
  env: environment(values.arch),
});
if (done.status !== 0) fail(1, 'cargo failed; what it says is above');

const addon = join(root, `packages/native/npm/${platform}/llamavid.${platform}.node`);
// Renamed into place: a process that has the old file mapped keeps it whole.
copyFileSync(join(folder, target, 'release/libllamavid_napi.so'), `${addon}.new`);
renameSync(`${addon}.new`, addon);
console.log(`${addon}: ${(statSync(addon).size / 2 ** 20).toFixed(1)} MiB`);

function environment(architecture: string): NodeJS.ProcessEnv {
  try {
    return cudaEnvironment(architecture);
  } catch (error) {
    fail(
      1,
      `CUDA's compiler cannot be set up: ${error instanceof Error ? error.message : error}`,
      'python3 with pip and ar (binutils) are needed, and a registry that has the wheels of tools/cuda/requirements.txt.',
    );
  }
}

function fail(code: number, message: string, hint?: string): never {
  console.error(`error: ${message}${hint === undefined ? '' : `\nhint: ${hint}`}`);
  process.exit(code);
}
