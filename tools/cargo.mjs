// Runs cargo with the flags that every step shares: one target folder, one profile, so candle is compiled once.
import { execFileSync, spawnSync } from 'node:child_process';
import { join, resolve } from 'node:path';
import process from 'node:process';

const root = resolve(import.meta.dirname, '..');
const target = execFileSync('rustc', ['--print', 'host-tuple'], { encoding: 'utf8' }).trim();
const shared = ['--release', '--locked', '--target', target, '--workspace'];
const [task, ...rest] = process.argv.slice(2);

/** Runs cargo and ends this process with its exit code when it fails. */
function cargo(...command) {
  const done = spawnSync('cargo', command, { stdio: 'inherit' });
  if (done.status !== 0) process.exit(done.status ?? 1);
}

if (task === 'lint') {
  cargo('fmt', '--all', '--check');
  cargo('clippy', ...shared, '--lib', '--bins', '--', '-D', 'warnings');
  // A test may unwrap: its panic is its failure.
  const inTests = ['unwrap_used', 'expect_used', 'panic'].flatMap((lint) => ['-A', `clippy::${lint}`]);
  // The addon has no test build: the symbols of Node are only there inside Node.
  cargo(
    'clippy',
    ...shared,
    '--exclude',
    'llamavid-napi',
    '--all-targets',
    '--',
    '-D',
    'warnings',
    ...inTests,
  );
} else if (task === 'test') {
  cargo('test', ...shared, '--quiet', '--no-fail-fast', ...rest);
  // The kernels once more, with the instructions that every processor has and without rounded rows.
  if (rest.length === 0) {
    process.env.LLAMAVID_CPU = 'portable';
    const kernels = ['gradients', 'operations', 'quantised', 'decoder_kinds'].flatMap((name) => [
      '--test',
      name,
    ]);
    cargo('test', ...shared, '--quiet', ...kernels);
  }
} else if (task === 'sanitise') {
  // Reads and writes beyond an allocation end the test that makes them. The sanitizer comes with every toolchain, and only the
  // flag is reserved for nightly ones. A folder of its own: everything is compiled with checks.
  process.env.RUSTC_BOOTSTRAP = '1';
  process.env.RUSTFLAGS = '-Zsanitizer=address';
  // The emulated blocks of threads run on stacks of their own, which it does not know.
  const skipped = ['--skip', 'cuda::'];
  const folder = ['--target-dir', join(root, 'target', 'sanitised')];
  const kernels = ['-p', 'llamavid-kernels', '--lib', '--test', 'quantised', '--test', 'operations'];
  cargo(
    'test',
    '--release',
    '--locked',
    '--target',
    target,
    ...folder,
    ...kernels,
    '--',
    ...skipped,
    ...rest,
  );
} else if (task === 'emulate') {
  // The kernels' tests for ARM processors, in QEMU: see CONTRIBUTING.md for what has to be installed. Alone and in a folder of
  // its own, since nothing else is compiled for them here.
  process.env.CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER = 'aarch64-linux-gnu-gcc';
  process.env.CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER =
    'qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu';
  const folder = ['--target-dir', join(root, 'target', 'emulated')];
  const arm = ['--release', '--locked', '--target', 'aarch64-unknown-linux-gnu', ...folder];
  const tests = [
    '--lib',
    ...['cached_attention', 'operations', 'quantised'].flatMap((name) => ['--test', name]),
  ];
  // The emulated blocks of threads are nothing that depends on the processor.
  cargo('test', ...arm, '-p', 'llamavid-kernels', ...tests, '--', '--skip', 'cuda::', ...rest);
} else if (task === 'parity') {
  // The whole workspace, so that features resolve as in every other step.
  cargo('build', ...shared, '--quiet');
  const done = spawnSync(join(root, 'target', target, 'release', 'llamavid-parity'), rest, {
    stdio: 'inherit',
  });
  process.exit(done.status ?? 1);
} else if (task === 'tiny') {
  cargo('build', ...shared, '--quiet');
  const folder = rest[0] ?? join(root, '.tiny');
  // One thread: at this size two spend their time waiting for each other. Two courses can run side by side instead.
  const env = { RAYON_NUM_THREADS: '1', MIMALLOC_PURGE_DELAY: '-1', ...process.env };
  const program = join(root, 'target', target, 'release', 'llamavid-tiny');
  const done = spawnSync(program, [folder, ...rest.slice(1)], { stdio: 'inherit', env });
  process.exit(done.status ?? 1);
} else if (task === 'checkpoint') {
  cargo('build', ...shared, '--quiet');
  const program = join(root, 'target', target, 'release', 'llamavid-scale');
  process.exit(spawnSync(program, rest, { stdio: 'inherit' }).status ?? 1);
} else if (task === 'quant') {
  cargo('build', ...shared, '--quiet', '--example', 'quantisation');
  const program = join(root, 'target', target, 'release', 'examples', 'quantisation');
  // Nothing but weights, keys and values is to be rounded.
  const env = { LLAMAVID_CPU: process.arch === 'x64' ? 'avx2-f32' : 'neon', ...process.env };
  const done = spawnSync(program, rest, { stdio: 'inherit', env });
  process.exit(done.status ?? 1);
} else {
  console.error(
    'usage: node tools/cargo.mjs lint | test [filter] | sanitise [filter] | emulate [filter] | parity <folder> [--json] [--device …] [--dtype …] | tiny [folder] [part] | ' +
      'checkpoint <folder> 7b|13b|small | quant [tiny] [small] [1b] [folder]',
  );
  process.exit(2);
}
