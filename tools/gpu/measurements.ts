/** What `pnpm bench:gpu` measures: the visual encoder, and reading and writing by the language model. */
import { randomFillSync } from 'node:crypto';
import { join } from 'node:path';
import { LanguageModel } from '../../packages/llm/dist/index.js';
import { Pixels } from '../../packages/native/dist/index.js';
import { VisualEncoder } from '../../packages/vision/dist/index.js';
import type { Comparison, Contender, Line } from '../bench/peers/comparison.ts';
import { median } from '../bench/peers/statistics.ts';
import { full as eva, operations } from '../bench/peers/vision.ts';
import { root } from './parts.ts';
import type { Limits, PyTorch } from './pytorch.ts';

export interface Tools {
  readonly device: string;
  readonly size: 'full' | 'tiny';
  readonly pytorch: PyTorch | undefined;
  /** A file or folder of random weights, as `tools/scale` writes them. */
  readonly material: (name: string, ...kind: readonly string[]) => string;
}

/** A comparison whose weights are loaded until it is disposed of. */
type Prepared = AsyncDisposable & { readonly comparison: Comparison };
export type Part = (tools: Tools, limits: Limits | undefined) => Promise<Prepared>;

const speed = { kind: 'speed' } as const;
const by = "PyTorch, the reference's way";

/** The embedded model's kind of encoder in the place of ViT-g. */
const smallest = {
  name: 'ViT of 2 blocks of 32',
  width: 32,
  depth: 2,
  heads: 2,
  inner: 139,
  side: 84,
  patch: 14,
};

export const encoder: Part = async ({ device, size, pytorch, material }, limits) => {
  const full = size === 'full';
  const shape = full ? eva : smallest;
  const batch = full ? 128 : 4;
  const folder = full ? material('vision', 'vision') : join(root, 'fixtures/random-model');
  const model = await VisualEncoder.load(folder, { device: device as 'cuda' });
  const encode = async (count: number) => {
    using pixels = Pixels.fromRgb(frames(count, shape.side), model.preprocessing);
    using one = Pixels.fromRgb(frames(1, shape.side), model.preprocessing);
    const began = performance.now();
    using _features = await model.encode(pixels);
    // A device goes on behind a call; the numbers of one more frame are there when all others are.
    using last = await model.encode(one);
    await last.toFloat32Array();
    return (1000 * (count + 1)) / (performance.now() - began);
  };
  const rate = (framesASecond: number) => ({
    frames: framesASecond,
    ...(limits && { share: (100 * framesASecond * operations(shape)) / limits.multiply }),
  });
  await encode(batch);
  const title = `${shape.name}, ${model.dtype}, ${batch} frames`;
  const peer = (torch: PyTorch): Contender => ({
    by,
    run: async () => {
      const task = { ...shape, engine: 'torch', batch, runs: 4, threads: 16, dtype: name(model.dtype) };
      const timed = await torch.run<{ seconds: number }>('../bench/peers/visual_encoder.py', task);
      return rate(batch / median(timed.map(({ seconds }) => seconds)));
    },
  });
  return {
    comparison: {
      lines: {
        frames: { title, unit: 'frames/s', ...speed, goal: { ratio: 1.2 } },
        ...share(limits, 'share', `${title}, of what products reach`, 55),
      },
      ours: { by: 'LLaMA-VID', run: async () => rate(await encode(batch)) },
      peers: pytorch === undefined ? [] : [peer(pytorch)],
    },
    async [Symbol.asyncDispose]() {
      model.close();
    },
  };
};

/** LLaMA's dimensions, as `tools/scale` has them. */
const decoders = {
  full: {
    name: '7b',
    width: 4096,
    inner: 11_008,
    layers: 32,
    heads: 32,
    vocabulary: 32_000,
    prompts: [2048, 8192],
    newTokens: 128,
  },
  tiny: {
    name: 'tiny',
    width: 128,
    inner: 384,
    layers: 5,
    heads: 4,
    vocabulary: 1195,
    prompts: [32, 64],
    newTokens: 8,
  },
} as const;

/**
 * The decoder of a file in one of llama.cpp's formats, beside PyTorch in 16 bits. Where several devices share its layers it is measured
 * alone: what the others do is one device's.
 */
export function decoder(format: 'f16' | 'q4_k', shared?: string): Part {
  return async ({ device, size, material, ...beside }, one) => {
    const limits = shared === undefined ? one : undefined;
    const pytorch = shared === undefined ? beside.pytorch : undefined;
    const shape = decoders[size];
    // The small rows of the embedded model have no larger blocks.
    const stored = size === 'tiny' && format === 'q4_k' ? 'q4_0' : format;
    const path = material(`${shape.name}-${stored}.gguf`, shape.name, stored);
    const model = await LanguageModel.load(path, {
      device: (shared ?? device) as 'cuda',
      split: shared === undefined ? 'layers' : 'tensor',
    });
    const matrices = shape.layers * shape.width * (4 * shape.width + 3 * shape.inner);
    const weights = matrices + shape.vocabulary * shape.width;
    const bits = format === 'f16' ? 16 : 4.75;
    const lines: Record<string, Line> = {};
    for (const tokens of shape.prompts) {
      const together = shared === undefined ? '' : ` shared by ${shared}`;
      const title = `${shape.name} ${stored} in ${model.dtype}${together}`;
      lines[`read ${tokens}`] = {
        title: `${title}, prefill of ${tokens}`,
        unit: 'tokens/s',
        ...speed,
        ...(shared === undefined && { goal: { ratio: 1 } }),
      };
      lines[`write ${tokens}`] = {
        title: `${title}, decode behind ${tokens}`,
        unit: 'tokens/s',
        ...speed,
        ...(shared === undefined && { goal: { ratio: 3 } }),
      };
      Object.assign(
        lines,
        share(limits, `multiplied ${tokens}`, `${title}, prefill of ${tokens}, of what products reach`, 55),
        share(limits, `fetched ${tokens}`, `${title}, decode behind ${tokens}, of the memory's speed`, 60),
      );
    }
    const rates = (tokens: number, read: number, write: number, bits: number) => {
      const attention = 2 * shape.layers * shape.width * tokens;
      const cache = 4 * shape.layers * shape.width * tokens;
      return {
        [`read ${tokens}`]: read,
        [`write ${tokens}`]: write,
        ...(limits && {
          [`multiplied ${tokens}`]: (100 * read * (2 * matrices + attention)) / limits.multiply,
          [`fetched ${tokens}`]: (100 * write * ((weights * bits) / 8 + cache)) / limits.read,
        }),
      };
    };
    const ours = async (tokens: number) => {
      using session = model.createSession();
      const prompt = promptOf(model, tokens);
      const { timings, usage } = await session.generate(prompt, { maxNewTokens: shape.newTokens }).result();
      const read = (1000 * usage.promptTokens) / timings.firstTokenMs;
      // Reading the prompt gives the first of them.
      const write = (1000 * (usage.completionTokens - 1)) / timings.decodeMs;
      return rates(tokens, read, write, bits);
    };
    const peer = (torch: PyTorch): Contender => ({
      by,
      run: async () => {
        const all = {};
        for (const prompt of shape.prompts) {
          const task = { ...shape, prompt, dtype: name(model.dtype) };
          const [timed] = await torch.run<{ first: number; rest: number; tokens: number }>(
            'language_model.py',
            task,
          );
          if (timed === undefined) throw new Error('language_model.py wrote nothing');
          Object.assign(all, rates(prompt, prompt / timed.first, timed.tokens / timed.rest, 16));
        }
        return all;
      },
    });
    // Also translates the kernels and fills the device's pool of memory.
    await ours(shape.prompts[0]);
    return {
      comparison: {
        lines,
        ours: {
          by: 'LLaMA-VID',
          run: async () => {
            const all = {};
            for (const tokens of shape.prompts) Object.assign(all, await ours(tokens));
            return all;
          },
        },
        peers: pytorch === undefined ? [] : [peer(pytorch)],
      },
      async [Symbol.asyncDispose]() {
        model.close();
      },
    };
  };
}

/** A text that makes a prompt of just so many tokens, with the one that begins it. */
function promptOf(model: LanguageModel, tokens: number): string {
  const text = (words: number) => 'a b '.repeat(Math.floor(words / 2)).concat(words % 2 === 0 ? '' : 'a');
  const count = (words: number) => 1 + model.countTokens(text(words));
  let words = Math.floor(tokens / ((count(128) - count(2)) / 126));
  while (count(words) > tokens) words -= 1;
  return text(words);
}

function frames(count: number, side: number) {
  return Array.from({ length: count }, () => ({
    data: randomFillSync(new Uint8Array(3 * side * side)),
    width: side,
    height: side,
  }));
}

/** As PyTorch names it. */
function name(dtype: string): string {
  return { bf16: 'bfloat16', f16: 'float16' }[dtype] ?? 'float32';
}

/** A line that there is only where the limits are known. */
function share(limits: Limits | undefined, key: string, title: string, goal: number): Record<string, Line> {
  return limits === undefined ? {} : { [key]: { title, unit: '%', ...speed, goal: { value: goal } } };
}
