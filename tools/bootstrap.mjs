// Runs a root script under the pinned Node and pnpm, so that any machine with Node >= 20, npm and Rust can start.
// Plain JavaScript without dependencies: it runs before anything is installed.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import process from 'node:process';

const NODE = 'node@24.21.0';
const PNPM = 'pnpm@12.21.0';
const windows = process.platform === 'win32';

const [script, ...rest] = process.argv.slice(2);
if (script === undefined) {
  console.error('usage: node tools/bootstrap.mjs <script> [arguments…]');
  process.exit(2);
}

for (const [tool, advice] of [
  ['cargo', 'Install Rust 1.92 or newer: https://rustup.rs'],
  [
    windows ? 'cl' : 'cc',
    'Install a C compiler: build-essential on Debian, Xcode command line tools on macOS',
  ],
]) {
  const found = spawnSync(windows ? 'where' : 'which', [tool], { stdio: 'ignore' });
  if (found.status !== 0) {
    console.error(`error: \`${tool}\` was not found.\nhint: ${advice}`);
    process.exit(1);
  }
}

/** Runs one pnpm command and ends this process with its exit code when it fails. */
function pnpm(...command) {
  const line = [
    'pnpm',
    ...command.map((word) => (/^[\w@./:=-]+$/.test(word) ? word : JSON.stringify(word))),
  ].join(' ');
  const done = spawnSync('npx', ['-y', '-p', NODE, '-p', PNPM, '-c', line], {
    stdio: 'inherit',
    shell: windows,
    env: { ...process.env, npm_config_update_notifier: 'false', TURBO_TELEMETRY_DISABLED: '1' },
  });
  if (done.status !== 0) process.exit(done.status ?? 1);
}

if (!existsSync(new URL('../target', import.meta.url))) {
  console.error(
    'The first build compiles the Rust core: expect about ten minutes on two cores, seconds afterwards.',
  );
}
pnpm('install', '--frozen-lockfile', '--reporter=append-only', '--loglevel=warn');
pnpm('run', script, ...rest);
