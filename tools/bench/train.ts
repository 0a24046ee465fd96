// Times training steps beside PyTorch's, at two sizes: `pnpm bench:train [python with torch]`.
// Without a Python to use, one is made in node_modules/.cache with PyTorch from PyPI; on Linux that wheel is built for
// CUDA and brings some 3 GB with it. Ours and theirs take turns, so that a busy minute meets both.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';

interface Task {
  readonly name: string;
  readonly kind: 'language' | 'vision';
  readonly width: number;
  readonly layers: number;
  readonly inner: number;
  readonly heads: number;
  readonly vocabulary?: number;
  readonly batch: number;
  /** Tokens of a text, or the side of a picture in pixels. */
  readonly length: number;
  readonly steps: number;
}

interface Timing {
  /** Seconds of the quickest step: forward, backward, AdamW. */
  readonly step: number;
  readonly forward: number;
  /** Bytes that steps took at their peak. */
  readonly memory: number;
  readonly parameters: number;
  readonly version?: string;
}

const tasks: readonly Task[] = [
  {
    name: 'language model, 4 layers of 128',
    kind: 'language',
    width: 128,
    layers: 4,
    inner: 384,
    heads: 4,
    vocabulary: 273,
    batch: 64,
    length: 100,
    steps: 10,
  },
  {
    name: 'language model, 8 layers of 512',
    kind: 'language',
    width: 512,
    layers: 8,
    inner: 1376,
    heads: 8,
    vocabulary: 4000,
    batch: 8,
    length: 256,
    steps: 3,
  },
  {
    name: 'visual encoder of `@llamavid/tiny`',
    kind: 'vision',
    width: 128,
    layers: 3,
    inner: 512,
    heads: 4,
    batch: 128,
    length: 84,
    steps: 10,
  },
  {
    name: 'visual encoder, 8 blocks of 512',
    kind: 'vision',
    width: 512,
    layers: 8,
    inner: 2048,
    heads: 8,
    batch: 32,
    length: 112,
    steps: 3,
  },
];
const rounds = 3;

const root = join(import.meta.dirname, '../..');
const threads = availableParallelism();

/** The example that measures us, built as the tests are. */
function ours(): string {
  const target = execFileSync('rustc', ['--print', 'host-tuple'], { encoding: 'utf8' }).trim();
  const flags = ['--release', '--locked', '--quiet', '--target', target, '--workspace'];
  execFileSync('cargo', ['build', ...flags, '--example', 'training_step'], { cwd: root, stdio: 'inherit' });
  return join(root, 'target', target, 'release/examples/training_step');
}

/** A Python with PyTorch: the one given, or one of our own. */
function python(): string {
  const given = process.argv[2];
  if (given !== undefined) return given;
  const folder = join(root, 'node_modules/.cache/bench-train');
  const own = join(folder, process.platform === 'win32' ? 'Scripts/python.exe' : 'bin/python');
  const ready = join(folder, 'ready');
  if (!existsSync(ready)) {
    console.log('PyTorch is installed into node_modules/.cache/bench-train; this takes a while.');
    mkdirSync(folder, { recursive: true });
    execFileSync('python3', ['-m', 'venv', folder], { stdio: 'inherit' });
    execFileSync(own, ['-m', 'pip', 'install', '--quiet', 'torch', 'numpy'], { stdio: 'inherit' });
    writeFileSync(ready, '');
  }
  return own;
}

function time(command: string, ...parameters: string[]): Timing {
  // The same threads for both: rayon's and candle's here, OpenMP's and MKL's there.
  const count = String(threads);
  const environment = {
    RAYON_NUM_THREADS: count,
    OMP_NUM_THREADS: count,
    MKL_NUM_THREADS: count,
    // Memory of a step stays for the next one; given back, it would come again page by page, each one zeroed.
    MIMALLOC_PURGE_DELAY: '-1',
  };
  const output = execFileSync(command, parameters, {
    encoding: 'utf8',
    env: { ...process.env, ...environment },
  });
  return JSON.parse(output) as Timing;
}

/** The round with the quickest step; memory is the same in all. */
const quickest = (timings: readonly Timing[]) =>
  timings.reduce((best, timing) => (timing.step < best.step ? timing : best));

const [rust, theirs] = [ours(), python()];
const script = join(import.meta.dirname, 'train.py');
const lines: string[] = [];
let version = '';
for (const { name, ...task } of tasks) {
  const text = JSON.stringify({ ...task, threads });
  const [a, b]: [Timing[], Timing[]] = [[], []];
  for (let round = 0; round < rounds; round += 1) {
    a.push(time(rust, text));
    b.push(time(theirs, script, text));
  }
  const [mine, other] = [quickest(a), quickest(b)];
  version = other.version ?? version;
  const items = task.kind === 'language' ? task.batch * task.length : task.batch;
  const unit = task.kind === 'language' ? 'tokens/s' : 'frames/s';
  const row = (who: string, timing: Timing, ratio: string) =>
    `| ${name} | ${who} | ${(timing.forward * 1e3).toFixed(0)} | ${(timing.step * 1e3).toFixed(0)} | ` +
    `${(items / timing.step).toFixed(0)} ${unit} | ${(timing.memory / 2 ** 20).toFixed(0)} | ${ratio} |`;
  lines.push(row('LLaMA-VID', mine, `**${(other.step / mine.step).toFixed(2)}**`), row('PyTorch', other, ''));
  console.log(lines.slice(-2).join('\n'));
}

const rustVersion = execFileSync('rustc', ['--version'], { encoding: 'utf8' }).trim();
const machine = `${cpus()[0]?.model ?? 'unknown CPU'}, ${threads} threads, ${(totalmem() / 2 ** 30).toFixed(0)} GiB`;
const report = `# Training steps beside PyTorch

Forward, backward and AdamW of a whole step, f32 on the CPU, the same sizes, batches and threads; PyTorch eager, with its
fused attention. The quickest step of ${rounds} processes each, which took turns. Memory is what steps took at their peak
beyond weights and inputs. The ratio is PyTorch's time by ours. Written by \`pnpm bench:train\`; other programs on the
machine slow both down, PyTorch more.
Ours runs with mimalloc, told to keep what is freed (\`MIMALLOC_PURGE_DELAY=-1\`): a sixth of the larger steps.

${new Date().toISOString().slice(0, 10)}, ${machine}, ${process.platform} ${process.arch}; ${rustVersion}, candle 0.11.1;
PyTorch ${version}.

| model | by | forward, ms | step, ms | speed | memory, MiB | ratio |
| --- | --- | --- | --- | --- | --- | --- |
${lines.join('\n')}
`;
writeFileSync(join(root, 'docs/benchmarks/train.md'), report);
