// Runs full-size models with random weights from file to answer: `pnpm scale [7b-4bit 7b-8bit 13b-4bit] [--folder <folder>]`.
// Each is generated in the published layout, converted, loaded twice (the second time its files are in memory), asked about half
// a minute of video, and deleted. Takes up to 60 GB of disk, 16 GB of memory and half an hour on two cores. What was measured is
// written to docs/benchmarks/scale.md.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';

interface Run {
  readonly size: '7b' | '13b' | 'small';
  readonly format: 'q4_k' | 'q8_0';
}

/** What one model took. Seconds and bytes. */
interface Measured {
  readonly converted: Done;
  readonly folderBytes: number;
  readonly plannedPeak: number;
  readonly answer: Answer;
  readonly first: Answer;
  /** Programs that wanted a core, this one's two among them. */
  readonly busy: number;
}

interface Answer {
  readonly usage: { promptTokens: number; visualTokens: number; completionTokens: number };
  readonly sampling: { frames: number };
  readonly timings: Record<
    | 'loadMs'
    | 'decodeMs'
    | 'encodeMs'
    | 'tokensMs'
    | 'prefillMs'
    | 'totalMs'
    | 'tokensPerSecond'
    | 'peakRssBytes',
    number
  >;
}

interface Done {
  readonly stdout: string;
  readonly seconds: number;
  readonly peakBytes: number;
}

const runs: Record<string, Run> = {
  '7b-4bit': { size: '7b', format: 'q4_k' },
  '7b-8bit': { size: '7b', format: 'q8_0' },
  '13b-4bit': { size: '13b', format: 'q4_k' },
  // Not a published size: shows in a minute that the script runs.
  'small-4bit': { size: 'small', format: 'q4_k' },
};

const root = join(import.meta.dirname, '../..');
const main = join(root, 'packages/cli/dist/main.js');
const video = join(root, 'fixtures/world/media/long-000.mp4');
const media = [video, '--start', '0', '--end', '30'];
const report = join(root, 'docs/benchmarks/scale.md');

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { folder: { type: 'string', default: join(tmpdir(), 'llamavid-scale') } },
});
const names = positionals.length > 0 ? positionals : ['7b-4bit', '7b-8bit', '13b-4bit'];
const unknown = names.find((name) => runs[name] === undefined);
if (unknown !== undefined) {
  console.error(`${unknown} is none of ${Object.keys(runs).join(', ')}`);
  process.exit(2);
}

const rows: string[] = [];
try {
  for (const [index, name] of names.entries()) {
    const run = runs[name] as Run;
    rows.push(row(name, await measure(name, run)));
    console.log(rows.at(-1));
    const next = names.slice(index + 1).some((later) => runs[later]?.size === run.size);
    if (!next) rmSync(join(values.folder, run.size), { recursive: true, force: true });
    if (run.size !== 'small') writeReport();
  }
} finally {
  rmSync(values.folder, { recursive: true, force: true });
}

async function measure(name: string, { size, format }: Run): Promise<Measured> {
  const [published, converted] = [join(values.folder, size), join(values.folder, name)];
  mkdirSync(values.folder, { recursive: true });
  if (!existsSync(published)) {
    console.log(`${name}: writing ${size}`);
    await execute(process.execPath, [join(root, 'tools/cargo.mjs'), 'checkpoint', published, size]);
  }
  console.log(`${name}: converting`);
  const conversion = await llamavid('convert', published, '-o', converted, '--quantize', format);
  try {
    const folder = ['--model', converted, '--device', 'cpu', '--json'];
    const plan = JSON.parse(
      (await llamavid('plan', ...media, '--max-new-tokens', '32', '--no-store', ...folder)).stdout,
    );
    console.log(`${name}: asking`);
    const ask = async (...about: string[]): Promise<Answer> =>
      JSON.parse((await llamavid('ask', ...about, '--no-store', ...folder)).stdout);
    // Loads once, so that the files are in memory for the second.
    const first = await ask('Who is there?', '--max-new-tokens', '1');
    const answer = await ask(...media, 'What happens in this video?', '--max-new-tokens', '32');
    return {
      converted: conversion,
      folderBytes: sizeOf(converted),
      plannedPeak: plan.options[plan.chosen].peakBytes,
      first,
      answer,
      busy: loadavg()[1] ?? 0,
    };
  } finally {
    rmSync(converted, { recursive: true, force: true });
  }
}

function llamavid(...args: string[]): Promise<Done> {
  return execute(process.execPath, [main, ...args, '--quiet']);
}

/** Runs a program to its end. Its peak is read from the system while it runs. */
function execute(program: string, args: readonly string[]): Promise<Done> {
  const begun = performance.now();
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let [stdout, peakBytes] = ['', 0];
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  const timer = setInterval(() => {
    const status = join('/proc', String(child.pid), 'status');
    if (!existsSync(status)) return;
    const [, kibibytes] = /VmHWM:\s+(\d+) kB/.exec(readFileSync(status, 'utf8')) ?? [];
    peakBytes = Math.max(peakBytes, Number(kibibytes ?? 0) * 1024);
  }, 200);
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (exitCode) => {
      clearInterval(timer);
      if (exitCode === 0) resolve({ stdout, seconds: (performance.now() - begun) / 1000, peakBytes });
      else reject(new Error(`${program} ${args.join(' ')} ended with ${exitCode}: ${stdout.slice(0, 500)}`));
    });
  });
}

function sizeOf(folder: string): number {
  const files = readdirSync(folder, { recursive: true, encoding: 'utf8' });
  return files.reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
}

function row(name: string, { converted, folderBytes, plannedPeak, first, answer, busy }: Measured): string {
  const { timings, usage, sampling } = answer;
  const seconds = (milliseconds: number) => (milliseconds / 1000).toFixed(1);
  const gigabytes = (bytes: number) => (bytes / 1e9).toFixed(2);
  const measuredPeak = timings.peakRssBytes;
  const cells = [
    name,
    gigabytes(folderBytes),
    `${converted.seconds.toFixed(0)} / ${gigabytes(converted.peakBytes)}`,
    `${seconds(first.timings.loadMs)} / ${seconds(timings.loadMs)}`,
    `${sampling.frames}`,
    seconds(timings.encodeMs),
    seconds(timings.tokensMs),
    `${seconds(timings.prefillMs)} (${usage.promptTokens})`,
    timings.tokensPerSecond.toFixed(2),
    seconds(timings.totalMs),
    gigabytes(plannedPeak),
    gigabytes(measuredPeak),
    `${(100 * (plannedPeak / measuredPeak - 1)).toFixed(1)} %`,
    busy.toFixed(1),
  ];
  return `| ${cells.join(' | ')} |`;
}

function writeReport(): void {
  const machine = [
    new Date().toISOString().slice(0, 10),
    cpus()[0]?.model ?? 'unknown processor',
    `${availableParallelism()} threads`,
    `${Math.round(totalmem() / 2 ** 30)} GiB`,
    `${process.platform} ${process.arch}`,
    `Node ${process.versions.node}`,
  ].join(', ');
  const head = [
    'model',
    'folder, GB',
    'convert, s / peak GB',
    'load cold / warm, s',
    'frames',
    'encode, s',
    'Q-Former, s',
    'prefill, s (tokens)',
    'tokens/s',
    'all, s',
    'planned peak, GB',
    'measured peak, GB',
    'off by',
    'load of the machine',
  ];
  const text = `# Full-size models on a small machine

Random weights in the published layout and sizes (\`tools/scale\`): the language model's shards in half precision, EVA ViT-g with 39 blocks of
1408, the Q-Former of 12 layers. Converted once, then asked about the first 30 seconds of a fixture video, one frame a second, 32 new tokens,
greedy. Cold is the first load behind the conversion (for a question about nothing), warm the second. The peak is the process's largest resident set, mapped weights
included; the planned one is what \`llamavid plan\` says before. What the answers say is nothing: the weights are random.
Other programs may have used the machine: the last column is its load, where 2 are this program's own.

Written by \`pnpm scale ${names.join(' ')}\`: ${machine}.

| ${head.join(' | ')} |
| ${head.map(() => '---').join(' | ')} |
${rows.join('\n')}
`;
  writeFileSync(report, text);
}
