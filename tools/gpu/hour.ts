/** An hour of video in a prompt as long as the published long-video models read: its speed, and its memory beside what a plan says. */
import { execFile } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import { describeModel, LanguageModel, type ModelDescription } from '../../packages/llm/dist/index.js';
import { Pixels } from '../../packages/native/dist/index.js';
import { TokenGenerator } from '../../packages/tokens/dist/index.js';
import { VisualEncoder, VisualFeatures } from '../../packages/vision/dist/index.js';
import type { Part } from './measurements.ts';

const sizes = {
  full: { kind: '7b', frames: 3600, tokens: 65_536, factor: 16 },
  tiny: { kind: 'smallest', frames: 12, tokens: 4096, factor: 1 },
} as const;

const GIB = 2 ** 30;
const question = 'What happens, and in which order?';
/** Frames encoded at once, as the pipeline does. */
const BATCH = 32;

export const hour: Part = async ({ device: name, size, material }) => {
  const { kind, frames, tokens, factor } = sizes[size];
  const folder = material(kind, kind);
  stretch(folder, factor);
  const description = await describeModel(folder);
  const load = { device: name as 'cuda' };
  const device = name === 'cuda' ? 'cuda:0' : name;
  const { prompt, promptTokens } = promptOf(description, tokens, frames);
  const media = { frames: [frames], sourcePixels: 0, promptTokens, question, maxNewTokens: 1 };
  const held = { dtype: 'auto', load: '16bit', kvCache: '16bit', device, split: 'layers' };
  const plan = JSON.parse(description.plan(JSON.stringify({ ...media, ...held, processBytes: 0 })));
  const { needed, dtype }: { needed: number; dtype: string } = plan.options[plan.chosen];
  const title = `${kind} in ${dtype}, ${promptTokens} tokens of which ${frames} frames are a part`;
  return {
    comparison: {
      lines: {
        read: { title: `${title}, prefill`, unit: 'tokens/s', kind: 'speed' },
        // What was planned is the goal.
        memory: {
          title: `${title}, memory`,
          unit: 'GiB',
          kind: 'cost',
          goal: { value: Math.ceil((10 * needed) / GIB) / 10 },
        },
        planned: { title: `${title}, memory that plan told`, unit: 'GiB', kind: 'cost' },
      },
      ours: {
        by: 'LLaMA-VID',
        run: async () => {
          const before = await usedBytes(device);
          let most = before;
          let watching = true;
          const watch = (async () => {
            while (watching) most = Math.max(most, await usedBytes(device));
          })();
          try {
            using encoder = await VisualEncoder.load(folder, load);
            using generator = await TokenGenerator.load(folder, load);
            using model = await LanguageModel.load(folder, load);
            using features = await encodeAll(encoder, frames);
            using visualTokens = await generator.generate(features, question);
            using session = model.createSession();
            const options = { visualTokens: [visualTokens], maxNewTokens: 1 };
            const { timings, usage } = await session.generate(prompt, options).result();
            const read = (1000 * usage.promptTokens) / timings.firstTokenMs;
            return { read, memory: (most - before) / GIB, planned: needed / GIB };
          } finally {
            watching = false;
            await watch;
          }
        },
      },
      peers: [],
    },
    async [Symbol.asyncDispose]() {},
  };
};

/** Lets a published configuration reach as far as stage 3 makes it. */
function stretch(folder: string, factor: number): void {
  const path = join(folder, 'config.json');
  const scaling = factor === 1 ? null : { type: 'linear', factor };
  const config = { ...JSON.parse(readFileSync(path, 'utf8')), rope_scaling: scaling };
  writeFileSync(path, JSON.stringify(config));
}

/** A prompt that just fits a context of `tokens`: the frames, and a text as long as what is left. */
function promptOf(description: ModelDescription, tokens: number, frames: number) {
  const write = (times: number) => `${description.imagePlaceholder}\n${'a b '.repeat(times)}`;
  const count = (times: number) => {
    const { promptTokens, places } = description.countPromptTokens(write(times));
    return promptTokens - places + frames * description.tokensPerFrame;
  };
  const each = (count(65) - count(1)) / 64;
  // One is left for the answer.
  const times = Math.floor((tokens - 1 - count(1)) / each);
  return { prompt: write(times), promptTokens: count(times) };
}

async function encodeAll(encoder: VisualEncoder, count: number): Promise<VisualFeatures> {
  const side = encoder.preprocessing.size;
  const parts: VisualFeatures[] = [];
  try {
    for (let first = 0; first < count; first += BATCH) {
      const frames = Array.from({ length: Math.min(BATCH, count - first) }, () => ({
        data: randomFillSync(new Uint8Array(3 * side * side)),
        width: side,
        height: side,
      }));
      using pixels = Pixels.fromRgb(frames, encoder.preprocessing);
      parts.push(await encoder.encode(pixels));
    }
    return await VisualFeatures.concatenate(parts);
  } finally {
    for (const part of parts) part.close();
  }
}

/** Memory in use: of a graphics processor, or of this process. */
async function usedBytes(device: string): Promise<number> {
  await setTimeout(100);
  if (device === 'cpu') return process.memoryUsage.rss();
  const index = Number(device.slice('cuda:'.length));
  // NVIDIA's program counts those too that are hidden from this process.
  const visible = process.env['CUDA_VISIBLE_DEVICES']?.split(',')[index] ?? `${index}`;
  const query = ['--query-gpu=memory.used', '--format=csv,noheader,nounits', '--id', visible];
  return 2 ** 20 * Number((await promisify(execFile)('nvidia-smi', query)).stdout);
}
