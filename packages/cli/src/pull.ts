import process from 'node:process';
import type { FileProgress, PulledModel, PullPlan } from '@llamavid/hub';
import type { Command } from 'commander';
import { wrong } from './flags.js';
import { Interrupt } from './interrupt.js';
import { Progress } from './progress.js';
import { writeJson } from './write-answer.js';

interface PullFlags {
  catalogue?: string;
  list?: boolean;
  json?: boolean;
  quiet?: boolean;
}

/** Where nobody watches a terminal, a file that takes long is worth a line so often. */
const LINE_EVERY_MS = 10_000;
/** A terminal is written to so often. */
const STATUS_EVERY_MS = 100;

/** `llamavid pull`. */
export function addPull(command: Command, end: (exitCode: number) => void): void {
  command
    .argument('[name]', 'organisation/name of the model on the hub, with @revision or without')
    .usage('[options] <name>[@revision]')
    .option('--list', 'list the models and side files that are known, and fetch nothing')
    .option('--catalogue <file>', 'JSON file with more of them (default: $LLAMAVID_CATALOGUE)')
    .option('--json', 'write one JSON object to stdout instead of the path')
    .option('--quiet', 'no progress on stderr')
    .addHelpText(
      'after',
      `
Prints the folder for --model; the name itself does as well. Run it again to resume.
Variables: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT, LLAMAVID_CATALOGUE.`,
    )
    .action(async (name: string | undefined, flags: PullFlags) => end(await pullModel(name, flags)));
}

async function pullModel(name: string | undefined, flags: PullFlags): Promise<number> {
  using interrupt = new Interrupt();
  const { pull, readCatalogue } = await import('@llamavid/hub');
  const catalogue = await readCatalogue(flags.catalogue);
  if (flags.list) {
    if (flags.json) writeJson({ entries: catalogue });
    else {
      const entries = Object.entries(catalogue);
      const width = Math.max(...entries.map(([each]) => each.length));
      for (const [each, { about = '' }] of entries) {
        process.stdout.write(`${each.padEnd(width)}  ${about}`.trimEnd().concat('\n'));
      }
    }
    return 0;
  }
  if (name === undefined) throw wrong('the name of the model is missing', 'llamavid pull <name>[@revision]');
  const progress = new Progress(flags.quiet ?? false);
  const lines = new PullLines(progress);
  try {
    progress.step(`asking for ${name}`);
    const pulled = await pull(name, {
      catalogue,
      signal: interrupt.signal,
      onPlan: (plan) => lines.plan(plan),
      onProgress: (file) => lines.file(file),
      onNote: (note) => progress.note(note),
    });
    progress.clear();
    if (flags.json) writeJson(toJson(pulled));
    else process.stdout.write(`${pulled.path}\n`);
  } finally {
    progress.clear();
  }
  return 0;
}

function toJson({ name, path, commit, files }: PulledModel): object {
  const sum = (of: PulledModel['files']) => of.reduce((total, { bytes }) => total + bytes, 0);
  const bytesFetched = sum(files.filter(({ state }) => state === 'fetched'));
  return { name, path, commit: commit ?? null, bytes: sum(files), bytesFetched, files };
}

/** A line for each file that is there, and how far the others are. */
class PullLines {
  readonly #progress: Progress;
  readonly #open = new Map<string, FileProgress & { told: number }>();
  #plan: PullPlan = { files: 0, bytes: 0, bytesToFetch: 0 };
  #done = { files: 0, bytes: 0 };
  #begun = performance.now();
  #arrived = 0;
  #told = 0;

  constructor(progress: Progress) {
    this.#progress = progress;
  }

  plan(plan: PullPlan): void {
    this.#plan = plan;
    this.#begun = performance.now();
    this.#progress.line(
      `${plan.files} files, ${size(plan.bytes)}: ${plan.bytesToFetch === 0 ? 'nothing' : size(plan.bytesToFetch)} to fetch`,
    );
  }

  file(file: FileProgress): void {
    const { name, bytes, done, state } = file;
    const before = this.#open.get(name);
    const now = performance.now();
    if (state === 'fetched' || state === 'cached') {
      this.#open.delete(name);
      this.#done = { files: this.#done.files + 1, bytes: this.#done.bytes + bytes };
      this.#progress.line(`${name}: ${size(bytes)} ${state}`);
    } else {
      // What another run had fetched came at no speed.
      if (before?.state === 'fetching') this.#arrived += Math.max(0, done - before.done);
      const tell = before === undefined ? state === 'waiting' : now - before.told > LINE_EVERY_MS;
      if (tell && !this.#progress.terminal) this.#progress.line(describe(file));
      this.#open.set(name, { ...file, told: before === undefined || tell ? now : before.told });
    }
    if (now - this.#told < STATUS_EVERY_MS) return;
    this.#told = now;
    this.#progress.status(this.#summary(now));
  }

  #summary(now: number): string {
    const open = [...this.#open.values()];
    const bytes = this.#done.bytes + open.reduce((sum, { done }) => sum + done, 0);
    const speed = this.#arrived / Math.max(1, now - this.#begun) / 1000;
    const { files, bytes: total } = this.#plan;
    const all = `${this.#done.files} of ${files} files, ${percent(bytes, total)} of ${size(total)}, ${speed.toFixed(1)} MB/s`;
    return [all, ...open.map(describe)].join(' | ');
  }
}

function describe({ name, state, done, bytes }: FileProgress): string {
  const file = name.slice(name.lastIndexOf('/') + 1);
  return state === 'waiting'
    ? `${file}: waiting for another process that fetches it`
    : `${file}: ${percent(done, bytes)} of ${size(bytes)}`;
}

function percent(done: number, bytes: number): string {
  return `${bytes === 0 ? 100 : Math.floor((done / bytes) * 100)} %`;
}

function size(bytes: number): string {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(2)} GB`;
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e3).toFixed(1)} kB`;
}
