import { join } from 'node:path';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { conversation, LanguageModel } from '../src/index.js';

/** Sessions of each call that decoded. */
const sizes: number[] = [];
vi.mock('@llamavid/native', async (importOriginal) => {
  const native = await importOriginal<typeof import('@llamavid/native')>();
  const nextOfEach: typeof native.Session.nextOfEach = (requests) => {
    sizes.push(requests.length);
    return native.Session.nextOfEach(requests);
  };
  return { ...native, Session: { nextOfEach } };
});

let model: LanguageModel;
beforeAll(async () => {
  const folder = join(import.meta.dirname, '../../../fixtures/random-model');
  model = await LanguageModel.load(folder, { device: 'cpu', dtype: 'f32' });
});
afterAll(() => model.close());

it('decodes together what is read side by side, and lets go who ends or is stopped', async () => {
  const prompts = ['Who is there?', 'What colour is it?', 'Why?', 'And then?'].map((question) =>
    conversation('vicuna_v1').render([{ question }]),
  );
  const lengths = [60, 60, 60, 1];
  const ask = async (text: string, index: number) => {
    using session = model.createSession();
    return (await session.generate(text, { maxNewTokens: lengths[index] }).result()).tokenIds;
  };
  const alone: number[][] = [];
  for (const [index, text] of prompts.entries()) alone.push(await ask(text, index));
  const piecesAlone = sizes.length;
  expect(Math.max(...sizes)).toBe(1);

  sizes.length = 0;
  const controller = new AbortController();
  const stopped = async () => {
    using session = model.createSession();
    const { signal } = controller;
    const generation = session.generate(prompts[0] ?? '', { maxNewTokens: 300, signal });
    for await (const _ of generation) controller.abort();
  };
  const [together, left] = await Promise.all([
    Promise.all(prompts.map(ask)),
    stopped().catch((error: unknown) => error),
  ]);
  expect(together).toEqual(alone);
  expect(left).toMatchObject({ code: 'ABORTED' });
  // The prompts are read in turns and end at different times, so the first rounds may have fewer.
  expect(Math.max(...sizes)).toBeGreaterThanOrEqual(3);
  expect(sizes.length).toBeLessThan(piecesAlone);
}, 120_000);

it('gives a piece to the newest generation of a session alone', async () => {
  using session = model.createSession();
  const [prompt = ''] = ['Who is there?'].map((question) => conversation('vicuna_v1').render([{ question }]));
  const first = session.generate(prompt, { maxNewTokens: 40 });
  const reading = first.result().catch((error: unknown) => error);
  const second = session.generate(prompt, { maxNewTokens: 12 });
  expect((await second.result()).tokenIds).toHaveLength(12);
  expect(await reading).toMatchObject({ code: 'ABORTED' });
}, 120_000);
