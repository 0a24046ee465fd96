/** The language model beside llama.cpp, which reads the same weights: in blocks, ours from a file whose rows are interleaved. */
import type { Bench, Row } from './bench.ts';
import type { Comparison, Contender, Line } from './comparison.ts';
import { objects } from './process.ts';

/** Parameters of each size, those of the embedding table left out. */
const parameters: Readonly<Record<string, { readonly matrices: number; readonly table: number }>> = {
  '7b': { matrices: 6.607e9, table: 0.131e9 },
  '1b': { matrices: 1.034e9, table: 0.066e9 },
  tiny: { matrices: 1.22e6, table: 0.15e6 },
};
const bits: Readonly<Record<string, number>> = {
  f32: 32,
  f16: 16,
  q8_0: 8.5,
  q4_0: 4.55,
  q4_k: 4.75,
  q6_k: 6.6,
};
/** Rows of the embedded model do not fill large blocks. */
const large = ['q4_k', 'q6_k'];
/** What has no blocks, whose rows could be interleaved. */
const plain = ['f32', 'f16'];

/** A timed pass, by the names that `llama-batched-bench` has. */
interface Timed {
  readonly pl: number;
  readonly pp: number;
  readonly tg: number;
  readonly t_pp: number;
  readonly t_tg: number;
}

interface File {
  readonly title: string;
  readonly path: string;
  /** The file with the same weights that we read. */
  readonly ours: string;
  readonly note: Note;
  /** Bytes that a pass reads of it. */
  readonly read: number;
}

/** What the table says of a line where we read another file than the peers. */
type Note = { readonly note?: string };

interface Work {
  /** Tokens of the prompts, each behind an empty cache. */
  readonly prompts: readonly number[];
  readonly newTokens: number;
  readonly eightBitCache: boolean;
}

/** Prompts of a size that a minute or so is enough for, and decoding behind them. */
export const lm = workRow({ prompts: [1, 512], newTokens: 32, eightBitCache: false });
/** Some 17 minutes of video. */
export const lm2048 = workRow({ prompts: [2048], newTokens: 16, eightBitCache: false });
/** An hour of video. */
export const lm7300 = workRow({ prompts: [7300], newTokens: 16, eightBitCache: false });
/** Keys and values in 8 bits. */
export const lmKv8 = workRow({ prompts: [512, 2048], newTokens: 16, eightBitCache: true });

/** Several questions at once: a pass over the weights gives a token of each. */
export const lmBatch: Row = async function* (bench) {
  for await (const { title, path, ours, note } of files(bench)) {
    const llama = bench.peers.llamaBench();
    const work = { prompts: [1], newTokens: 32, eightBitCache: false };
    const rates = (timed: readonly Timed[]) =>
      Object.fromEntries(timed.map(({ pl, tg, t_tg }) => [`batch ${pl}`, (pl * tg) / t_tg]));
    yield {
      lines: Object.fromEntries(
        batches.map((batch) => [
          `batch ${batch}`,
          { title: `${title}, decode ${batch} at once`, ...note, ...speed, goal: { ratio: 1.3 } },
        ]),
      ),
      ours: {
        by: 'LLaMA-VID',
        run: async () => {
          const task = { kind: 'together', model: ours, batches, newTokens: work.newTokens };
          return rates((await bench.ours<Timed>(task)).objects);
        },
      },
      peers: [
        {
          by: 'llama.cpp',
          run: async () => {
            const args = llamaArguments(bench, path, work, 'on', 1, batches);
            return rates(timedOf((await bench.measured(llama, args)).stdout, batches.length));
          },
        },
      ],
    };
  }
};
const batches = [4, 16];

/** From the file, which is in the system's cache, to the first token behind a prompt of 16, and the memory for it. */
export const lmStart: Row = async function* (bench) {
  for await (const { title, path, ours, note } of files(bench)) {
    const llama = bench.peers.llamaBench();
    const args = llamaArguments(bench, path, { prompts: [16], newTokens: 1, eightBitCache: false }, 'on', 16);
    yield {
      lines: {
        seconds: {
          title: `${title}, load to first token`,
          ...note,
          unit: 's',
          kind: 'cost',
          ...(title.startsWith('7b q4') && { goal: { value: 1.5 } }),
        },
        peak: { title: `${title}, peak of memory`, ...note, unit: 'MB', kind: 'cost', goal: { ratio: 0.65 } },
      },
      ours: {
        by: 'LLaMA-VID',
        run: async () => {
          const { seconds, peakBytes } = await bench.ours({ kind: 'firstToken', model: ours });
          return { seconds, peak: peakBytes / 1e6 };
        },
      },
      peers: [
        {
          by: 'llama.cpp',
          run: async () => {
            const { stdout, seconds, peakBytes } = await bench.measured(llama, args);
            // It reads 16 tokens before it times anything. What it times, and once more for the line that it loses, is no
            // part of a start.
            const [timed] = timedOf(stdout, 1);
            const extra = 2 * ((timed?.t_pp ?? Number.NaN) + (timed?.t_tg ?? Number.NaN));
            return { seconds: seconds - extra, peak: peakBytes / 1e6 };
          },
        },
      ],
    };
  }
};

function workRow(work: Work): Row {
  return async function* (bench) {
    for await (const file of files(bench)) yield await comparison(bench, file, work);
  };
}

async function comparison(bench: Bench, file: File, work: Work): Promise<Comparison> {
  const { title, path, note, read } = file;
  const { read: bandwidth } = await bench.limits();
  const { prompts, newTokens, eightBitCache } = work;
  const name = eightBitCache ? `${title}, KV 8 bits` : title;
  const lines: Record<string, Line> = {};
  const goal = (ratio: number) => ({ goal: eightBitCache ? { ratio: 1, to: wholeCache } : { ratio } });
  for (const tokens of prompts) {
    if (tokens > 1) {
      lines[`prefill ${tokens}`] = { title: `${name}, prefill ${tokens}`, ...note, ...speed, ...goal(1.3) };
    }
    lines[`decode ${tokens}`] = {
      title: `${name}, decode at ${tokens === 1 ? 0 : tokens}`,
      ...note,
      ...speed,
      ...goal(goalOfDecoding(title, tokens)),
    };
    if (tokens === 1) {
      const goal = title.includes('q4') ? { goal: { value: 90 } } : {};
      lines['weights read'] = {
        title: `${name}, weights read of what memory gives`,
        ...note,
        unit: '%',
        kind: 'speed',
        ...goal,
      };
    }
  }
  const rates = (timed: readonly Timed[]) =>
    Object.fromEntries(
      timed.flatMap(({ pp, tg, t_pp, t_tg }) => [
        [`prefill ${pp}`, pp / t_pp],
        [`decode ${pp}`, tg / t_tg],
        ...(pp === 1 ? [['weights read', (100 * read * tg) / t_tg / 1e9 / bandwidth]] : []),
      ]),
    );
  const llama = bench.peers.llamaBench();
  const peer = (by: string, flashAttention: string): Contender => ({
    by,
    run: async () => {
      const args = llamaArguments(bench, path, work, flashAttention);
      return rates(timedOf((await bench.measured(llama, args)).stdout, prompts.length));
    },
  });
  const own = (by: string, eightBitCache: boolean): Contender => ({
    by,
    run: async () => {
      const task = { kind: 'language', model: file.ours, prompts, newTokens, eightBitCache };
      return rates((await bench.ours<Timed>(task)).objects);
    },
  });
  return {
    lines,
    ours: own('LLaMA-VID', eightBitCache),
    // Values in 8 bits are only read by llama.cpp's flash attention.
    peers: eightBitCache
      ? [peer('llama.cpp', 'on'), own(wholeCache, false)]
      : [peer('llama.cpp', 'on'), peer('llama.cpp without flash attention', 'off')],
  };
}

/** A cache of 8 bits is to be no slower. */
const wholeCache = 'LLaMA-VID, KV as computed';
const speed = { unit: 'tokens/s', kind: 'speed' } as const;

/** Twice as fast behind a long prompt; ahead in 4 bits, and level where llama.cpp reads as fast as memory gives. */
function goalOfDecoding(title: string, tokens: number): number {
  if (tokens >= 2048) return 2;
  return title.includes('q4') ? 1.3 : 1;
}

/** The files of the chosen sizes and formats, each there while it is worked with. */
async function* files(bench: Bench): AsyncGenerator<File, void, void> {
  for (const size of bench.choice.sizes) {
    for (const format of bench.choice.formats) {
      const { matrices, table } = parameters[size] ?? { matrices: 0, table: 0 };
      if (size === 'tiny' && large.includes(format)) continue;
      const width = bits[format] ?? 32;
      const bytes = (matrices * width + table * Math.max(width, 16)) / 8;
      using weights = await modelFile(bench, size, format, bytes);
      if (weights !== undefined) {
        yield { ...weights, title: `${size} ${format}`, read: (matrices * width) / 8 };
      }
    }
  }
}

/**
 * Random weights of about so many bytes. Those in blocks are there twice, once with their rows interleaved, where that pays and there is
 * room for both.
 */
export async function modelFile(
  bench: Bench,
  size: string,
  format: string,
  bytes: number,
): Promise<(Pick<File, 'path' | 'ours' | 'note'> & Disposable) | undefined> {
  const weights = bench.weights(`${size}-${format}.gguf`, bytes, size, format);
  if (weights === undefined) return undefined;
  const wanted = !plain.includes(format) && (await bench.limits()).interleaving;
  // Both are in memory while they are measured in turn.
  const interleaved = wanted
    ? bench.weights(`${size}-${format}-interleaved.gguf`, 2 * bytes, size, format, 'interleaved')
    : undefined;
  return {
    path: weights.path,
    ours: interleaved?.path ?? weights.path,
    note: interleaved === undefined ? {} : { note: 'ours: interleaved rows' },
    [Symbol.dispose]() {
      weights[Symbol.dispose]();
      interleaved?.[Symbol.dispose]();
    },
  };
}

/** What `llama-batched-bench` wrote for so many prompts. */
export function timedOf(stdout: string, prompts: number): Timed[] {
  const timed = objects<Timed>(stdout).slice(0, prompts);
  if (timed.length < prompts)
    throw new Error(`llama-batched-bench timed ${timed.length} of ${prompts} prompts`);
  return timed;
}

/** Its log ends before its last line is written, so behind the work there is another prompt, `last`, that nobody asks for. */
export function llamaArguments(
  { choice }: Bench,
  path: string,
  { prompts, newTokens, eightBitCache }: Work,
  flashAttention: string,
  last = 1,
  together: readonly number[] = [1],
): string[] {
  const threads = String(choice.threads);
  const room = Math.max(...together) * (Math.max(...prompts) + newTokens);
  return [
    ...['-m', path, '-c', String(Math.ceil(room / 256) * 256), '-b', '2048', '-ub', '512', '-ngl', '0'],
    ...[
      '-npp',
      [...prompts, last].join(','),
      '-ntg',
      String(newTokens),
      '-npl',
      together.join(','),
      '-t',
      threads,
      '-tb',
      threads,
    ],
    ...(eightBitCache ? ['-ctk', 'q8_0', '-ctv', 'q8_0'] : []),
    ...['-fa', flashAttention, '--output-format', 'jsonl'],
  ];
}

export const sizes = Object.keys(parameters);
export const formats = Object.keys(bits);
