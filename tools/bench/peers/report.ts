/** The table of all measurements, kept as JSON and written as Markdown. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import process from 'node:process';
import { judge, type Measured } from './comparison.ts';
import type { Spread } from './statistics.ts';

/** A line of the table, and where it comes from. */
export interface Entry extends Measured {
  readonly row: string;
  readonly machine: string;
  readonly date: string;
  readonly commit: string;
  /** By name, of what was compared. */
  readonly versions: Readonly<Record<string, string>>;
}

/** Features of processors that some path of ours or theirs makes use of, as Linux names them. */
const telling = [
  'avx2',
  'fma',
  'avx512f',
  'avx512_vnni',
  'avx_vnni',
  'avx512_bf16',
  'amx_int8',
  'amx_bf16',
  'asimddp',
  'i8mm',
];

/** The processor, what it can do, and how much of it is used. */
export function machine(threads: number): string {
  const model = cpus()[0]?.model.trim() ?? 'unknown processor';
  const flags = new Set(processorFlags().split(/\s+/));
  const features = telling.filter((feature) => flags.has(feature)).join(' ');
  const memory = `${Math.round(totalmem() / 2 ** 30)} GiB`;
  return [model, features, `${threads} threads`, memory, `${process.platform} ${process.arch}`]
    .filter(Boolean)
    .join('; ');
}

function processorFlags(): string {
  if (process.platform === 'darwin') {
    const listed = execFileSync('sysctl', ['-a'], { encoding: 'utf8', maxBuffer: 16 << 20 });
    return /FEAT_DotProd: 1/.test(listed) ? 'asimddp' : '';
  }
  const listed = readFileSync('/proc/cpuinfo', 'utf8');
  return /^(?:flags|Features)\s*:(.*)$/m.exec(listed)?.[1] ?? '';
}

/** Entries with `newer` in the place of earlier ones of the same line on the same machine. */
export function merged(entries: readonly Entry[], newer: readonly Entry[]): Entry[] {
  const key = ({ machine, row, title }: Entry) => JSON.stringify([machine, row, title]);
  const all = new Map(entries.map((entry) => [key(entry), entry]));
  for (const entry of newer) all.set(key(entry), entry);
  return [...all.values()];
}

/** Reads the entries of `path`, and none where there is no such file. */
export function readEntries(path: string): Entry[] {
  return existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : [];
}

/** Writes `<path>.json` and `<path>.md`, whose tables stand below `preface`. */
export function writeReport(path: string, entries: readonly Entry[], preface = besidePeers(entries)): void {
  replace(`${path}.json`, `${JSON.stringify(entries, null, 1)}\n`);
  replace(`${path}.md`, markdown(entries, preface));
}

function replace(path: string, text: string): void {
  writeFileSync(`${path}.part`, text);
  renameSync(`${path}.part`, path);
}

export function markdown(entries: readonly Entry[], preface = besidePeers(entries)): string {
  const machines = [...new Set(entries.map(({ machine }) => machine))];
  const parts = machines.map((machine) => {
    const here = entries.filter((entry) => entry.machine === machine);
    const versions = Object.entries(Object.assign({}, ...here.map((entry) => entry.versions)));
    const list = versions.map(([name, version]) => `${name} ${version}`).join(', ');
    const head = ['row', 'what', 'unit', 'LLaMA-VID', 'peers', 'ratio', 'goal', 'measured'];
    return `## ${machine}

${list}

| ${head.join(' | ')} |
| ${head.map(() => '---').join(' | ')} |
${here.map(tableRow).join('\n')}
`;
  });
  return [preface, ...parts].join('\n');
}

function besidePeers(entries: readonly Entry[]): string {
  return `# Beside the peers

Written by \`pnpm bench:peers [row …]\`, which installs the peers, generates random weights and lets ours and theirs run in turn with the
same threads. Each cell is the median of the runs, the lowest and the highest in brackets. The ratio is ours by that of the best
peer, or of the one that the goal names: of speeds, where more is better, or of costs, where less is; in brackets the extremes over runs that followed each other.
Goals in **bold** are reached. Repeat a row by its name: \`pnpm bench:peers ${entries[0]?.row ?? 'lm'}\`.
`;
}

function tableRow(entry: Entry): string {
  const { ours, peers, ratio, reached } = judge(entry);
  const { kind, goal } = entry;
  const sign = kind === 'speed' ? '≥' : '≤';
  const wanted =
    goal === undefined
      ? ''
      : 'ratio' in goal
        ? `${sign} ${goal.ratio} ×${goal.to === undefined ? '' : ` ${goal.to}`}`
        : `${sign} ${goal.value}`;
  const cells = [
    `\`${entry.row}\``,
    entry.note === undefined ? entry.title : `${entry.title} (${entry.note})`,
    entry.unit,
    shown(ours),
    peers.map(({ by, spread }) => `${by} ${shown(spread)}`).join('<br>'),
    ratio === undefined ? '' : shown(ratio),
    reached === true ? `**${wanted}**` : wanted,
    `${entry.date}, ${entry.commit}`,
  ];
  return `| ${cells.join(' | ')} |`;
}

function shown({ median, lowest, highest }: Spread): string {
  return `${digits(median)} (${digits(lowest)}–${digits(highest)})`;
}

/** Three digits that count. */
export function digits(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}
