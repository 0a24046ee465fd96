// Holds a device to the reference's records and its answers to the CPU's: `pnpm test:gpu [--device cuda] [--questions 500]`. Needs no
// registry and no network. Ends with 0 when all that ran has passed, 1 when something has not, 2 for wrong usage, and 3 when the device
// cannot be used and nothing ran.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { compareAnswers } from './answers.ts';
import { describe, ended, program, root, twoDevices } from './parts.ts';

/** Of the answers that must be the CPU's. */
const SAME = 0.99;

interface Report {
  folders: {
    folder: string;
    leftOut: string[];
    checks: { case: string; name: string; passed: boolean; maxRelative: number | null; problem?: string }[];
  }[];
}

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    questions: { type: 'string', default: '500' },
    cases: { type: 'string', default: join(root, 'fixtures/oracle') },
  },
});
const questions = Number(values.questions);
if (!Number.isSafeInteger(questions) || questions < 1) {
  console.error(`--questions ${values.questions} is not a whole number of at least 1`);
  process.exit(ended.usage);
}
const device = describe(values.device);
if (device === undefined) {
  console.error('Nothing was tested.');
  process.exit(ended.noDevice);
}
console.log(device);
const results = [
  kernels(),
  ...['f32', 'f16', 'bf16'].map(records),
  await answers('f32', values.device),
  await answers('auto', values.device),
];
// Two devices together, where there are two.
const two = twoDevices(values.device, 'answers of two devices that share each layer');
if (two !== undefined) results.push(await answers('f32', two), await answers('auto', two));
process.exitCode = results.every(Boolean) ? ended.passed : ended.failed;

/** Whether every operation is what its definition says. */
function kernels(): boolean {
  const definitions = program('kernel_parity', values.device);
  if (definitions === undefined) {
    console.log('skipped: kernels: kernel_parity was not built for this device');
    return true;
  }
  // Some processors round what meets weights in blocks, which no definition does.
  const env = { ...process.env, LLAMAVID_CPU: 'portable' };
  const { status, stdout, stderr } = spawnSync(definitions, [values.device], { env, encoding: 'utf8' });
  console.log(`${status === 0 ? 'passed' : 'FAILED'}: kernels`);
  if (status !== 0) console.log(`${stdout}${stderr}`);
  return status === 0;
}

/** Whether every recorded tensor is met in `dtype`. */
function records(dtype: string): boolean {
  const parity = program('llamavid-parity', values.device);
  if (parity === undefined) {
    console.log(`skipped: records in ${dtype}: llamavid-parity was not built for this device`);
    return true;
  }
  const args = [values.cases, '--json', '--device', values.device, '--dtype', dtype];
  const { status, signal, stdout, stderr } = spawnSync(parity, args, {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  if (status !== 0 && status !== 1) {
    console.log(`FAILED: records in ${dtype}: ${parity} ended with ${signal ?? status}: ${stderr.trim()}`);
    return false;
  }
  const { folders }: Report = JSON.parse(stdout);
  const checks = folders.flatMap(({ folder, checks }) => checks.map((check) => ({ folder, ...check })));
  if (checks.length === 0) {
    console.log(`FAILED: records in ${dtype}: there are none in ${values.cases}`);
    return false;
  }
  const failed = checks.filter(({ passed }) => !passed);
  const furthest = Math.max(...checks.map(({ maxRelative }) => maxRelative ?? 0));
  const verdict = failed.length === 0 ? 'passed' : 'FAILED';
  const numbers = `${checks.length} compared, ${failed.length} too far, furthest ${furthest.toExponential(1)}`;
  console.log(`${verdict}: records in ${dtype}: ${numbers}`);
  for (const { folder, case: id, name, maxRelative, problem } of failed.slice(0, 40)) {
    console.log(`  ${folder} ${id} ${name}: ${problem ?? maxRelative?.toExponential(1)}`);
  }
  for (const reason of new Set(folders.flatMap(({ leftOut }) => leftOut)))
    console.log(`  skipped: ${reason}`);
  return failed.length === 0;
}

/** Whether the embedded model answers in `dtype` on a device, or on several together, as it does on the CPU. */
async function answers(dtype: 'f32' | 'auto', on: string): Promise<boolean> {
  const each = await compareAnswers(on, dtype, questions);
  const same = each.filter(({ here, cpu }) => here === cpu).length;
  const right = each.filter(({ here, answer }) => here === answer).length;
  const passed = same >= SAME * each.length;
  const share = (count: number) => `${((100 * count) / each.length).toFixed(1)} %`;
  console.log(
    `${passed ? 'passed' : 'FAILED'}: answers in ${dtype} of ${on}: ${each.length} questions, ${share(same)} as on the CPU, ${share(right)} right`,
  );
  for (const { question, here, cpu } of each.filter(({ here, cpu }) => here !== cpu).slice(0, 20)) {
    console.log(`  ${question}: ${here} and not ${cpu}`);
  }
  return passed;
}
