// Measures every part beside the peers: `pnpm bench:peers [row …] [--sizes tiny,1b,7b] [--formats q4_0,…] [--rounds 3] [--threads n]
// [--keep]`. Rows are the names below; without one, all of them run. Peers and weights live in LLAMAVID_PEERS, by default a folder of
// the user's cache, which may be deleted at any time. Results go to docs/benchmarks/peers.{md,json}, line by line.
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { Bench, commit, forcedPath, type Row } from './bench.ts';
import { compare, judge } from './comparison.ts';
import { formats, lm, lm2048, lm7300, lmBatch, lmKv8, lmStart, sizes } from './language.ts';
import { limits } from './limits.ts';
import { PeerFolder, versions } from './peer-folder.ts';
import { binding, start } from './product.ts';
import { digits, type Entry, machine, merged, readEntries, writeReport } from './report.ts';
import { resize, videoRows } from './video.ts';
import { visionRows } from './vision.ts';

type Version = keyof typeof versions;

/** Each with the peers that it is about. */
const rows: Readonly<Record<string, { readonly row: Row; readonly peers: readonly Version[] }>> = {
  limits: { row: limits, peers: [] },
  lm: { row: lm, peers: ['llama-cpp-python'] },
  'lm-start': { row: lmStart, peers: ['llama-cpp-python'] },
  'lm-2048': { row: lm2048, peers: ['llama-cpp-python'] },
  'lm-7300': { row: lm7300, peers: ['llama-cpp-python'] },
  'lm-batch': { row: lmBatch, peers: ['llama-cpp-python'] },
  'lm-kv8': { row: lmKv8, peers: ['llama-cpp-python'] },
  vision: { row: visionRows.encoder, peers: ['onnxruntime', 'torch'] },
  'vision-8bit': { row: visionRows.eightBitEncoder, peers: ['onnxruntime'] },
  tokens: { row: visionRows.tokens, peers: ['torch'] },
  'vision-small': { row: visionRows.small, peers: ['onnxruntime', 'torch'] },
  video: { row: videoRows.hd, peers: ['decord', 'av', 'imageio-ffmpeg'] },
  'video-480p': { row: videoRows.sd, peers: ['decord', 'av', 'imageio-ffmpeg'] },
  resize: { row: resize, peers: ['pillow'] },
  start: { row: start, peers: [] },
  binding: { row: binding, peers: ['llama-cpp-python', 'node-llama-cpp'] },
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    sizes: { type: 'string', default: sizes.join(',') },
    formats: { type: 'string', default: formats.join(',') },
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string', default: String(availableParallelism()) },
    keep: { type: 'boolean', default: false },
    output: { type: 'string', default: join(import.meta.dirname, '../../../docs/benchmarks/peers') },
  },
});

const chosen = named('row', positionals.length > 0 ? positionals : Object.keys(rows), Object.keys(rows));
const choice = {
  sizes: named('size', values.sizes.split(','), sizes),
  formats: named('format', values.formats.split(','), formats),
  threads: count('threads', values.threads),
  keep: values.keep,
};
const rounds = count('rounds', values.rounds);

const bench = new Bench(new PeerFolder(), choice);
const here = machine(choice.threads) + (forcedPath === undefined ? '' : `; LLAMAVID_CPU=${forcedPath}`);
for (const name of chosen) {
  const { row, peers } = rows[name] as (typeof rows)[string];
  for await (const comparison of row(bench)) {
    const measured = await compare(comparison, rounds, (by, round) =>
      console.error(`${name}: ${by}, ${round + 1} of ${rounds}`),
    );
    const entries: Entry[] = measured.map((each) => ({
      ...each,
      row: name,
      machine: here,
      date: new Date().toISOString().slice(0, 10),
      commit: commit(),
      versions: Object.fromEntries(peers.map((peer) => [peer, versions[peer]])),
    }));
    for (const entry of entries) {
      const { ours, ratio } = judge(entry);
      console.log(
        `${entry.title}: ${digits(ours.median)} ${entry.unit}${ratio ? `, ${digits(ratio.median)} ×` : ''}`,
      );
    }
    // At once: a later row may fail.
    writeReport(values.output, merged(readEntries(`${values.output}.json`), entries));
  }
}
for (const reason of bench.skipped) console.log(`not measured: ${reason}`);

function named(kind: string, names: readonly string[], known: readonly string[]): readonly string[] {
  const unknown = names.find((name) => !known.includes(name));
  if (unknown === undefined) return names;
  console.error(`the ${kind} ${unknown} is none of ${known.join(', ')}`);
  process.exit(2);
}

function count(name: string, value: string): number {
  const number = Number(value);
  if (Number.isSafeInteger(number) && number > 0) return number;
  console.error(`--${name} ${value} is not a whole number of at least 1`);
  process.exit(2);
}
