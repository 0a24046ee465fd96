// Builds the addon and its types, then the TypeScript around them.
// `napi build` always passes --target, and the whole workspace is built as tools/cargo.mjs builds it: another choice of
// crates would mean other features, and compile candle a second time.
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, renameSync } from 'node:fs';
import { join } from 'node:path';

const here = import.meta.dirname;
const run = (command, ...args) =>
  execFileSync(command, args, { cwd: here, stdio: 'inherit', shell: process.platform === 'win32' });

run(
  'napi',
  'build',
  '--platform',
  '--release',
  '--no-js',
  '--dts',
  'src/binding.d.ts',
  '--manifest-path',
  '../../crates/llamavid-napi/Cargo.toml',
  '--package-json-path',
  'package.json',
  '--output-dir',
  '.',
  '--',
  '--workspace',
  '--locked',
);
for (const name of readdirSync(here).filter((file) => file.endsWith('.node'))) {
  const platform = join(here, 'npm', name.replace(/^llamavid\.|\.node$/g, ''));
  if (!existsSync(platform)) continue;
  // Renamed into place: a process that has the old file mapped keeps it whole.
  copyFileSync(join(here, name), join(platform, `${name}.new`));
  renameSync(join(platform, `${name}.new`), join(platform, name));
}
run('tsc', '-b');
mkdirSync(join(here, 'dist'), { recursive: true });
copyFileSync(join(here, 'src/binding.d.ts'), join(here, 'dist/binding.d.ts'));
