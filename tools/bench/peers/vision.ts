/** The visual encoder and the Q-Former beside PyTorch and ONNX Runtime, with the same shapes. */

import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Bench, Row } from './bench.ts';
import type { Comparison, Contender } from './comparison.ts';
import { objects } from './process.ts';
import { median } from './statistics.ts';

/** An encoder's sizes. */
interface Shape {
  readonly name: string;
  readonly width: number;
  readonly depth: number;
  readonly heads: number;
  readonly inner: number;
  readonly side: number;
  readonly patch: number;
}

/** One that is a size of `tools/scale`. */
interface Scaled extends Shape {
  readonly size: 'vision' | 'small';
  /** Of its checkpoint. */
  readonly bytes: number;
}

/** EVA's. */
export const full: Scaled = {
  name: 'ViT-g',
  size: 'vision',
  width: 1408,
  depth: 39,
  heads: 16,
  inner: 6144,
  side: 224,
  patch: 14,
  bytes: 3.2e9,
};
const small: Scaled = {
  ...full,
  name: 'ViT of 8 blocks of 704',
  size: 'small',
  width: 704,
  depth: 8,
  heads: 8,
  inner: 3072,
  bytes: 1e9,
};

/** Sizes of the published Q-Former, and a question of 32 word pieces: those of the vocabulary of `tools/scale` have two letters. */
const query = {
  layers: 12,
  width: 768,
  heads: 12,
  inner: 3072,
  queries: 32,
  visualWidth: 1408,
  rows: 257,
  languageWidth: 4096,
};
const words = Array.from({ length: 30 }, (_, index) => `a${String.fromCharCode(97 + (index % 26))}`);

export const visionRows: Readonly<Record<'encoder' | 'eightBitEncoder' | 'tokens' | 'small', Row>> = {
  encoder: (bench) => encoders(bench, full, false),
  eightBitEncoder: (bench) => encoders(bench, full, true),
  small: async function* (bench) {
    yield* encoders(bench, small, false);
    yield* encoders(bench, small, true);
  },
  tokens: async function* (bench) {
    using weights = bench.weights('vision', full.bytes, 'vision');
    if (weights === undefined) return;
    const frames = 64;
    const rate = (stdout: string) => ({
      speed: frames / median(objects<Timed>(stdout).map(({ seconds }) => seconds)),
    });
    const python = bench.peers.python('torch', 'numpy');
    const script = join(import.meta.dirname, 'query_model.py');
    const task = JSON.stringify({
      ...query,
      frames,
      words: words.length + 2,
      runs: 2,
      threads: bench.choice.threads,
    });
    yield {
      lines: {
        speed: {
          title: `Q-Former and tokens, ${frames} frames and a question of 32 word pieces`,
          unit: 'frames/s',
          kind: 'speed',
          goal: { ratio: 2 },
        },
      },
      ours: {
        by: 'LLaMA-VID',
        run: async () =>
          rate(
            (
              await bench.ours({
                kind: 'tokens',
                model: weights.path,
                frames,
                question: words.join(' '),
                runs: 2,
              })
            ).stdout,
          ),
      },
      peers: [
        {
          by: "PyTorch, the reference's way",
          run: async () => rate((await bench.measured(python, [script, task])).stdout),
        },
      ],
    };
  },
};

interface Timed {
  readonly seconds: number;
}

async function* encoders(
  bench: Bench,
  shape: Scaled,
  eightBit: boolean,
): AsyncGenerator<Comparison, void, void> {
  using weights = bench.weights(shape.size, shape.bytes, shape.size);
  if (weights === undefined) return;
  const python = bench.peers.python(
    'numpy',
    'onnx',
    'onnxruntime',
    ...(eightBit ? [] : (['torch'] as const)),
  );
  const kind = eightBit ? 'int8' : 'f32';
  const parameters = shape.depth * shape.width * (4 * shape.width + 2 * shape.inner);
  using onnx = bench.material(`${shape.size}-${kind}-onnx`, parameters * (eightBit ? 1 : 4), (path) => {
    mkdirSync(path);
    execFileSync(python, [
      join(import.meta.dirname, 'onnx_encoder.py'),
      path,
      JSON.stringify({ ...shape, kind }),
    ]);
  });
  if (onnx === undefined) return;
  const { multiply } = await bench.limits();
  for (const batch of [1, 4]) {
    // A frame takes seconds: as many of them in each run.
    const task = { ...shape, batch, runs: Math.ceil(4 / batch), threads: bench.choice.threads };
    const rate = (stdout: string) => {
      const speed = batch / median(objects<Timed>(stdout).map(({ seconds }) => seconds));
      return { speed, share: (100 * speed * operations(shape)) / 1e9 / multiply };
    };
    const peer = (by: string, engine: string, extra: object = {}): Contender => ({
      by,
      run: async () => {
        const script = join(import.meta.dirname, 'visual_encoder.py');
        const text = JSON.stringify({ ...task, engine, ...extra });
        return rate((await bench.measured(python, [script, text])).stdout);
      },
    });
    const title = `${shape.name}${eightBit ? ', 8 bits' : ', f32'}, batch of ${batch}`;
    const runtime = peer(eightBit ? 'ONNX Runtime, dynamic int8' : 'ONNX Runtime', 'onnx', {
      model: join(onnx.path, 'model.onnx'),
    });
    yield {
      lines: {
        speed: { title, unit: 'frames/s', kind: 'speed', goal: { ratio: 1.1 } },
        share: {
          title: `${title}, of the f32 peak`,
          unit: '%',
          kind: 'speed',
          ...(eightBit ? {} : { goal: { value: 82 } }),
        },
      },
      ours: {
        by: 'LLaMA-VID',
        run: async () => {
          const own = { kind: 'encoder', model: weights.path, eightBit, batch, runs: task.runs };
          return rate((await bench.ours(own)).stdout);
        },
      },
      peers: eightBit ? [runtime] : [runtime, peer('PyTorch', 'torch')],
    };
  }
}

/** Multiplications and additions of the products of a frame, each counted. */
export function operations({ width, depth, inner, side, patch }: Shape): number {
  const patches = (side / patch) ** 2;
  const rows = patches + 1;
  const block = 2 * rows * width * (4 * width + 2 * inner) + 4 * rows * rows * width;
  return depth * block + 2 * patches * width * 3 * patch * patch;
}
