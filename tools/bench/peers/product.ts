/** What a user waits for: the start of a question, and what each token costs beside its computation. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import process from 'node:process';
import { pathToFileURL } from 'node:url';
import type { Row } from './bench.ts';
import { llamaArguments, modelFile, timedOf } from './language.ts';
import { objects } from './process.ts';

const root = join(import.meta.dirname, '../../..');
const library = (name: string) => pathToFileURL(join(root, 'packages', name, 'dist/index.js')).href;

/** `llamavid ask` with the embedded model about ten seconds of video, from the start of the process to the first text. */
export const start: Row = async function* (bench) {
  const cli = join(root, 'packages/cli/dist/main.js');
  const video = join(root, 'fixtures/world/media/long-000.mp4');
  const args = [cli, 'ask', video, 'what appears first?', '--end', '10', '--no-store', '--quiet'];
  const environment = { ...process.env, LLAMAVID_THREADS: String(bench.choice.threads) };
  yield {
    lines: {
      time: {
        title: 'ask about 10 seconds, to the first token',
        unit: 'ms',
        kind: 'cost',
        goal: { value: 400 },
      },
    },
    ours: {
      by: 'LLaMA-VID',
      run: async () => {
        const begun = performance.now();
        const child = spawn(process.execPath, args, {
          stdio: ['ignore', 'pipe', 'inherit'],
          env: environment,
        });
        const ended = once(child, 'close');
        await once(child.stdout, 'data');
        const time = performance.now() - begun;
        child.stdout.resume();
        const [exitCode] = await ended;
        if (exitCode !== 0) throw new Error(`llamavid ask ended with ${exitCode}`);
        return { time };
      },
    },
    peers: [],
  };
};

/** Tokens of a model whose passes take next to nothing, through Node and without it: the difference is what the binding costs. */
export const binding: Row = async function* (bench) {
  using weights = await modelFile(bench, 'tiny', 'q8_0', 2e6);
  if (weights === undefined) return;
  const { path, ours, note } = weights;
  const newTokens = 500;
  const llama = bench.peers.llamaBench();
  const nodeLlama = pathToFileURL(bench.peers.nodeLlama()).href;
  const throughNode = async (script: string, entry: string, path: string) => {
    const args = [
      join(import.meta.dirname, script),
      entry,
      path,
      String(newTokens),
      String(bench.choice.threads),
    ];
    const [taken] = objects<{ seconds: number; tokens: number }>(
      (await bench.measured(process.execPath, args)).stdout,
    );
    if (taken === undefined) throw new Error(`${script} wrote nothing`);
    return taken.seconds / taken.tokens;
  };
  yield {
    lines: {
      token: {
        title: 'what the binding adds to a token',
        ...note,
        unit: 'µs',
        kind: 'cost',
        goal: { value: 50 },
      },
    },
    ours: {
      by: 'LLaMA-VID',
      run: async () => {
        const task = { kind: 'language', model: ours, prompts: [8], newTokens, eightBitCache: false };
        const [rust] = (await bench.ours<{ t_tg: number }>(task)).objects;
        const node = await throughNode('generate.ts', library('llm'), ours);
        return { token: 1e6 * (node - (rust?.t_tg ?? Number.NaN) / newTokens) };
      },
    },
    peers: [
      {
        by: 'node-llama-cpp',
        run: async () => {
          const work = { prompts: [8], newTokens, eightBitCache: false };
          const args = llamaArguments(bench, path, work, 'on');
          const [own] = timedOf((await bench.measured(llama, args)).stdout, 1);
          const node = await throughNode('generate-peer.ts', nodeLlama, path);
          return { token: 1e6 * (node - (own?.t_tg ?? Number.NaN) / newTokens) };
        },
      },
    ],
  };
};
