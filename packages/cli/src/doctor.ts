import { accessSync, constants, existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { availableParallelism, freemem, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';
import type { Command } from 'commander';
import { gigabytes } from './convert.js';
import { writeJson } from './write-answer.js';

interface DoctorFlags {
  model?: string;
  json?: boolean;
}

/** One thing that was looked at. */
interface Check {
  name: string;
  status: 'pass' | 'warning' | 'failure';
  message: string;
  /** What to do; `null` where nothing is to be done. */
  fix: string | null;
}

/** The smallest memory with which a 7B model in 4 bits is any use. */
const SMALL_MEMORY = 8e9;
const DRIVER = '/proc/driver/nvidia/version';

/** `llamavid doctor`: exits with 1 when something fails. */
export function addDoctor(command: Command, end: (exitCode: number) => void): void {
  command
    .option('--model <folder>', 'also look whether this model is complete')
    .option('--json', 'write one JSON object to stdout instead of text')
    .action(async (flags: DoctorFlags) => end(await doctor(flags)));
}

async function doctor(flags: DoctorFlags): Promise<number> {
  const checks = [
    processors(),
    memory(),
    ...(await addon()),
    ...(await codecs()),
    await cache(),
    ...(flags.model === undefined ? [] : await model(flags.model)),
  ];
  const ok = checks.every(({ status }) => status !== 'failure');
  if (flags.json) writeJson({ ok, checks });
  else {
    for (const { name, status, message, fix } of checks) {
      process.stdout.write(`${status.padEnd(7)} ${name}: ${message}\n`);
      if (fix !== null) process.stdout.write(`        ${fix}\n`);
    }
  }
  return ok ? 0 : 1;
}

function pass(name: string, message: string): Check {
  return { name, status: 'pass', message, fix: null };
}

function warning(name: string, message: string, fix: string): Check {
  return { name, status: 'warning', message, fix };
}

function failure(name: string, message: string, fix: string): Check {
  return { name, status: 'failure', message, fix };
}

function failed(name: string, error: unknown, fix: string): Check {
  if (LlamaVidError.is(error)) return failure(name, error.message, error.hint ?? fix);
  return failure(name, error instanceof Error ? error.message : String(error), fix);
}

function processors(): Check {
  const count = availableParallelism();
  const limit = cpuLimit();
  const text = `${count} ${count === 1 ? 'core' : 'cores'}`;
  const limited = limit !== undefined && limit < count;
  return pass('processors', limited ? `${text}, of which the container may use ${limit}` : text);
}

/** Cores that the control group allows; absent without a limit. */
function cpuLimit(): number | undefined {
  const [quota, period] = (read('/sys/fs/cgroup/cpu.max') ?? '').split(' ').map(Number);
  return quota !== undefined && period !== undefined && quota > 0 && period > 0 ? quota / period : undefined;
}

function memory(): Check {
  const limit = Number(read('/sys/fs/cgroup/memory.max'));
  const total = limit > 0 ? Math.min(limit, totalmem()) : totalmem();
  const used = limit > 0 ? Number(read('/sys/fs/cgroup/memory.current')) : 0;
  const free = Math.min(limit > 0 ? limit - used : Number.POSITIVE_INFINITY, available());
  const text = `${gigabytes(free)} free of ${gigabytes(total)}`;
  if (total >= SMALL_MEMORY) return pass('memory', text);
  return warning('memory', text, 'The embedded model runs; a 7B model needs 8 GB even in 4 bits.');
}

/** Memory that programs can have, caches given back. */
function available(): number {
  const [, kilobytes] = /^MemAvailable:\s+(\d+) kB/m.exec(read('/proc/meminfo') ?? '') ?? [];
  return kilobytes === undefined ? freemem() : Number(kilobytes) * 1024;
}

async function addon(): Promise<Check[]> {
  let native: typeof import('@llamavid/native');
  try {
    native = await import('@llamavid/native');
  } catch (error) {
    return [failed('addon', error, 'Install the package for this platform again.')];
  }
  const { source, reason } = native.loadedAddon;
  const place = `${process.platform}-${process.arch}, Node ${process.version}`;
  const checks = [pass('addon', `loaded on ${place}: ${source}, because ${reason}`)];
  const features = native.processorFeatures();
  const names = (present: boolean) =>
    features.filter((one) => one.present === present).map(({ name }) => name);
  const needed = ['avx2', 'fma', 'neon'].filter((name) => names(false).includes(name));
  let used: string;
  try {
    used = native.callNative(native.instructionSet);
  } catch (error) {
    checks.push(failed('instruction sets', error, 'Leave LLAMAVID_CPU unset.'));
    return checks;
  }
  const has = `${names(true).join(', ') || 'none that are used'}; the kernels use ${used}`;
  checks.push(
    needed.length === 0
      ? pass('instruction sets', has)
      : warning(
          'instruction sets',
          `${has}; not ${needed.join(', ')}`,
          'Answers take several times as long here.',
        ),
  );
  checks.push(threads(native), gpu(native));
  return checks;
}

function threads({ callNative, threadCount }: typeof import('@llamavid/native')): Check {
  try {
    return pass('threads', `${callNative(threadCount)} compute`);
  } catch (error) {
    return failed('threads', error, 'Unset LLAMAVID_THREADS, or set it to a number.');
  }
}

function gpu(native: typeof import('@llamavid/native')): Check {
  const { callNative, cudaSupport, Device } = native;
  const [driver] = /Kernel Module[^\n]*?(\d+\.\d+[\d.]*)/.exec(read(DRIVER) ?? '')?.slice(1) ?? [];
  const { devices, libraries } = cudaSupport();
  const found = [
    ...devices.map((name, index) => `cuda:${index} is ${name}`),
    ...(driver === undefined ? [] : [`driver ${driver}`]),
    ...(libraries.length === 0 ? [] : [`opened ${libraries.join(', ')}`]),
  ].join('; ');
  try {
    using device = callNative(() => Device.open('cuda'));
    const usable = `${device.name} can be used; ${found}`;
    return pass('GPU', devices.length < 2 ? usable : `${usable}; ${together(native)}`);
  } catch (error) {
    if (found === '' && !existsSync('/dev/nvidiactl')) {
      return pass('GPU', 'none found; models run on the CPU');
    }
    const { message, fix } = failed('GPU', error, 'Use --device cpu.');
    return warning('GPU', found === '' ? message : `${found}; but ${message}`, fix ?? 'Use --device cpu.');
  }
}

/** Whether several devices can share each layer. */
function together({ callNative, ncclLibrary }: typeof import('@llamavid/native')): string {
  try {
    return `--split tensor has ${callNative(ncclLibrary)}`;
  } catch (error) {
    return `--split tensor cannot be used: ${(error as Error).message}`;
  }
}

async function codecs(): Promise<Check[]> {
  try {
    const { videoDecoders } = await import('@llamavid/video');
    const decoders = await videoDecoders();
    const missing = decoders.filter(({ decoder }) => decoder === null);
    const found = decoders.filter(({ decoder }) => decoder !== null);
    const text = found
      .map(({ codec, decoder }) => (codec === decoder ? codec : `${codec} (${decoder})`))
      .join(', ');
    if (missing.length === 0) return [pass('codecs', text)];
    const names = missing.map(({ codec }) => codec).join(', ');
    return [warning('codecs', `${text}; not ${names}`, 'Convert such videos to H.264 first.')];
  } catch (error) {
    return [failed('codecs', error, 'Install node-av again, with its package for this platform.')];
  }
}

/** Where downloads go. */
async function cache(): Promise<Check> {
  const { hubCache } = await import('@llamavid/hub');
  const folder = hubCache();
  let place = folder;
  while (!existsSync(place) && dirname(place) !== place) place = dirname(place);
  try {
    accessSync(place, constants.W_OK | constants.X_OK);
    if (!statSync(place).isDirectory()) throw new Error(`${place} is not a folder`);
  } catch (error) {
    return failed('cache', error, 'Make it writable, or set HF_HOME to a folder that is.');
  }
  return pass(
    'cache',
    place === folder ? `${folder}, ${gigabytes(sizeOf(folder))}` : `${folder}, not made yet`,
  );
}

/** Bytes of the files in a folder; links are not followed, so that nothing counts twice. */
function sizeOf(folder: string): number {
  let bytes = 0;
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    // A download may end meanwhile, and its file have another name.
    bytes += statSync(join(entry.parentPath, entry.name), { throwIfNoEntry: false })?.size ?? 0;
  }
  return bytes;
}

async function model(folder: string): Promise<Check[]> {
  try {
    const { inspect } = await import('@llamavid/convert');
    const { parts, problems } = await inspect(folder);
    const [first, ...others] = problems;
    if (first === undefined) {
      const bytes = parts.reduce((sum, part) => sum + part.bytes, 0);
      return [pass('model', `${folder}, complete, ${gigabytes(bytes)} of weights`)];
    }
    const more = others.length === 0 ? '' : ` (and ${others.length} more)`;
    const fix = first.hint ?? '`llamavid inspect` says more.';
    return [failure('model', `${first.message}${more}`, fix)];
  } catch (error) {
    return [failed('model', error, 'Give the folder that holds config.json and the weights.')];
  }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    // Other systems have no such file.
    return undefined;
  }
}
