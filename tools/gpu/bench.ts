// Times a device beside PyTorch on the same device in turn: `pnpm bench:gpu [--device cuda] [--size full|tiny] [--rounds 3]
// [--python python3] [--material <folder>] [--output <path without extension>]`. Needs no registry and no network: weights are drawn at
// random, 37 GB of them at full size. Ends as `pnpm test:gpu` does. On a graphics processor, results go to docs/benchmarks/gpu.{md,json}.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { LlamaVidError } from '../../packages/errors/dist/index.js';
import { compare, judge } from '../bench/peers/comparison.ts';
import { digits, type Entry, merged, readEntries, writeReport } from '../bench/peers/report.ts';
import { hour } from './hour.ts';
import { decoder, encoder, type Part, type Tools } from './measurements.ts';
import { describe, ended, program, root, twoDevices } from './parts.ts';
import { preface } from './preface.ts';
import { PyTorch } from './pytorch.ts';

const sizes = ['full', 'tiny'] as const;

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    size: { type: 'string', default: 'full' },
    rounds: { type: 'string', default: '3' },
    python: { type: 'string', default: 'python3' },
    material: { type: 'string', default: join(tmpdir(), 'llamavid-gpu') },
    output: { type: 'string' },
  },
});
const size = sizes.find((name) => name === values.size);
const rounds = Number(values.rounds);
if (size === undefined || !Number.isSafeInteger(rounds) || rounds < 1) {
  console.error(`--size is one of ${sizes.join(', ')}, and --rounds a whole number of at least 1`);
  process.exit(ended.usage);
}
const device = describe(values.device);
if (device === undefined) {
  console.error('Nothing was measured.');
  process.exit(ended.noDevice);
}
const output =
  values.output ?? (values.device.startsWith('cuda') ? join(root, 'docs/benchmarks/gpu') : undefined);
console.log(device);

const tools: Tools = {
  device: values.device,
  size,
  pytorch: PyTorch.find(values.python, values.device),
  material,
};
if (tools.pytorch === undefined) console.log(`skipped: PyTorch: ${values.python} has none for this device`);
const limits = await tools.pytorch?.limits(size);
let failed = false;
const parts = [encoder, decoder('f16'), decoder('q4_k'), hour];
const two = twoDevices(values.device, 'a decoder whose layers two devices share');
if (two !== undefined) parts.push(decoder('f16', two));
for (const part of parts) await measure(part);
process.exitCode = failed ? ended.failed : ended.passed;

/** Measures one part and writes it down at once: a later one may fail. */
async function measure(part: Part): Promise<void> {
  try {
    await using prepared = await part(tools, limits);
    const measured = await compare(prepared.comparison, rounds);
    const entries: Entry[] = measured.map((each) => ({
      ...each,
      row: size as string,
      machine: device as string,
      date: new Date().toISOString().slice(0, 10),
      commit: process.env['LLAMAVID_COMMIT'] ?? commit(),
      versions: tools.pytorch?.versions ?? {},
    }));
    for (const entry of entries) {
      const { ours, ratio } = judge(entry);
      const compared = ratio === undefined ? '' : `, ${digits(ratio.median)} × PyTorch`;
      console.log(`${entry.title}: ${digits(ours.median)} ${entry.unit}${compared}`);
    }
    if (output !== undefined) {
      const all = merged(readEntries(`${output}.json`), entries);
      writeReport(output, all, preface(all.some(({ machine }) => machine.startsWith('cuda'))));
    }
  } catch (error) {
    // What a device or PyTorch cannot do is a finding like another, a lack of memory among it; what comes behind is measured all the same.
    const { message } = error as Error;
    console.log(`FAILED: ${LlamaVidError.is(error) ? `${error.code}: ` : ''}${message}`);
    failed = true;
  }
}

/** Weights of random numbers, kept for the next run. */
function material(name: string, ...kind: readonly string[]): string {
  const path = join(values.material, name);
  if (existsSync(path)) return path;
  // Writes the same on any processor.
  const scale = program('llamavid-scale', 'cpu');
  if (scale === undefined) throw new LlamaVidError('MODEL_NOT_FOUND', 'llamavid-scale was not built');
  mkdirSync(values.material, { recursive: true });
  const unfinished = join(values.material, `unfinished-${name}`);
  rmSync(unfinished, { recursive: true, force: true });
  console.log(`writing ${path}`);
  execFileSync(scale, [unfinished, ...kind], { stdio: ['ignore', 'ignore', 'inherit'] });
  renameSync(unfinished, path);
  return path;
}

function commit(): string {
  return execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim();
}
